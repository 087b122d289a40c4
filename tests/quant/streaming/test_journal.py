"""A journal with damaged lines loses those, and one with a damaged key everything; reading never fails."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from quant.streaming.journal import Journal, read_journal

ENTRIES = {"a": {"name": "a", "crc32": 7}, "b": {"name": "b", "crc32": 9}}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "user.journal"
    with closing(Journal(path, "key", {"a": ENTRIES["a"]})) as journal:
        journal.finished("b", crc32=9)
    return path


def test_what_was_written_is_read(path: Path) -> None:
    assert read_journal(path, "key") == ENTRIES
    assert read_journal(path, "other key") == {}
    assert read_journal(path.with_name("none"), "key") == {}


@pytest.mark.parametrize("damaged", [b'{"key": "k\xffy"}', b"", b"\0" * 14, b'["key"]'])
def test_a_damaged_key_is_that_of_another_run(path: Path, damaged: bytes) -> None:
    path.write_bytes(path.read_bytes().replace(b'{"key": "key"}', damaged))
    assert read_journal(path, "key") == {}


@pytest.mark.parametrize(
    "damaged",
    [b'{"crc32": 7, "name": "\xff"}', b'{"crc32": 7, "na', b"\0" * 27, b"3", b"[]", b'{"crc32": 7}', b"\xff"],
)
def test_a_damaged_line_is_ignored(path: Path, damaged: bytes) -> None:
    whole = path.read_bytes()
    assert b'{"crc32": 7, "name": "a"}' in whole
    path.write_bytes(whole.replace(b'{"crc32": 7, "name": "a"}', damaged))
    assert read_journal(path, "key") == {"b": ENTRIES["b"]}
