"""What has the name of a file and is none is named, and never waited for."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from graphs.base.errors import UgsepError
from graphs.base.regular_file import is_regular_file


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (Path.mkdir, "a folder"),
        (os.mkfifo, "a pipe"),
        (_socket, "a socket"),
        (lambda p: p.symlink_to("/dev/null"), "a device"),
        (lambda p: p.symlink_to("."), "a folder"),
        (lambda p: p.symlink_to("gone"), "a link that leads to no file"),
        (lambda p: p.symlink_to(p.name), "a link that leads to itself"),
    ],
)
def test_what_is_no_file_is_named(tmp_path: Path, make: Callable[[Path], object], what: str) -> None:
    make(tmp_path / "a")
    with pytest.raises(UgsepError) as caught:
        is_regular_file(tmp_path / "a", "copy it again")
    assert str(caught.value) == f"'{tmp_path / 'a'}' is {what}, not a file; copy it again"


def test_files_and_links_to_them_are_files_and_what_is_missing_is_not(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    (tmp_path / "b").symlink_to("a")
    there = {name: is_regular_file(tmp_path / name, "fix it") for name in ("a", "b", "c", "c/d", "a/b", "a\0")}
    assert there == {"a": True, "b": True, "c": False, "c/d": False, "a/b": False, "a\0": False}
