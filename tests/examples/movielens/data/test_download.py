import hashlib
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from examples.movielens.data.download import WHEEL, fetch, read_member, sha256_of
from graphs.base.errors import UgsepError

WriteWheel = Callable[..., Path]


def test_a_wheel_with_the_right_hash_is_used_without_a_network(
    tmp_path: Path, write_wheel: WriteWheel, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = write_wheel(tmp_path / WHEEL)
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")  # starting pip would raise
    assert fetch(tmp_path, sha256_of(wheel)) == wheel


def test_sha256_is_the_files(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_of(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()


def test_a_wheel_with_another_hash_is_refused_in_one_line(tmp_path: Path, write_wheel: WriteWheel) -> None:
    write_wheel(tmp_path / WHEEL)
    with pytest.raises(UgsepError, match=r"sha256 is .* expected 9c9948202011.*delete it") as error:
        fetch(tmp_path)
    assert "\n" not in str(error.value)


def test_a_truncated_wheel_is_refused(tmp_path: Path, write_wheel: WriteWheel) -> None:
    wheel = write_wheel(tmp_path / WHEEL)
    sha = sha256_of(wheel)
    wheel.write_bytes(wheel.read_bytes()[:-100])
    with pytest.raises(UgsepError, match=f"{wheel.stat().st_size} bytes"):
        fetch(tmp_path, sha)
    with pytest.raises(UgsepError, match=r"cannot read recbole/dataset_example/ml-100k/ml-100k\.inter"):
        read_member(wheel, "inter")


def test_no_network_is_one_line_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")  # pip's own way to have no registry
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    with pytest.raises(UgsepError, match=r"pip could not download recbole==1.2.1 \(.*check the network") as error:
        fetch(tmp_path / "data")
    assert "\n" not in str(error.value)
    assert list((tmp_path / "data").iterdir()) == []


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    with pytest.raises(UgsepError, match="cannot write to"):
        fetch(tmp_path / "data")


def test_a_table_that_is_missing_is_named(tmp_path: Path, write_wheel: WriteWheel) -> None:
    with pytest.raises(UgsepError, match=r"ml-100k\.kg"):
        read_member(write_wheel(tmp_path / WHEEL), "kg")
