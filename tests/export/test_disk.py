"""Files are read the same past the file cache and through it, from any place to any other."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from export.disk import BLOCK, File, aligned_room, open_file
from graphs.errors import UgsepError

SIZE = 3 * BLOCK + 1234


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("disk") / "data"
    found.write_bytes(torch.randint(0, 256, (SIZE,), dtype=torch.uint8).numpy().tobytes())
    return found


@settings(max_examples=60, deadline=None)
@given(ends=st.tuples(st.integers(0, SIZE), st.integers(0, SIZE)), dropped=st.booleans(), room=st.booleans())
def test_bytes_are_those_of_the_file(path: Path, ends: tuple[int, int], dropped: bool, room: bool) -> None:
    low, high = sorted(ends)
    with open_file(path) as file:
        if dropped:  # else all of it is in the cache
            os.fsync(file.cached)
            os.posix_fadvise(file.cached, 0, 0, os.POSIX_FADV_DONTNEED)
        found = file.read(low, high - low, aligned_room(5 * BLOCK) if room else None)
        assert found.numpy().tobytes() == path.read_bytes()[low:high]


def test_what_is_not_in_the_cache_is_read_past_it_into_the_room(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used, preadv = [], os.preadv

    def watched(descriptor: int, buffers: list[memoryview], offset: int, flags: int = 0) -> int:
        if flags:
            raise BlockingIOError(errno.EAGAIN, "not in the cache")
        used.append(descriptor)
        return preadv(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", watched)
    with open_file(path) as file:
        if file.direct is None:
            pytest.skip("this file system reads through the cache only")
        room = aligned_room(5 * BLOCK)
        found = file.read(BLOCK + 8, 2 * BLOCK, room, 8)
        assert (used, found.data_ptr()) == ([file.direct], room.data_ptr() + 8)
        assert found.numpy().tobytes() == path.read_bytes()[BLOCK + 8 : 3 * BLOCK + 8]
        used.clear()  # elements of 8 bytes would lie askew in the room
        assert file.read(BLOCK + 2, 8, room, 8).numpy().tobytes() == path.read_bytes()[BLOCK + 2 : BLOCK + 10]
        assert used == [file.cached]


def test_a_room_too_small_and_a_file_without_a_second_door_are_no_trouble(path: Path) -> None:
    with open_file(path) as file:
        want = path.read_bytes()[100:5000]
        assert file.read(100, 4900, aligned_room(BLOCK)).numpy().tobytes() == want
        assert File(path, file.cached, None).read(100, 4900, aligned_room(3 * BLOCK)).numpy().tobytes() == want


def test_a_file_that_became_shorter_is_named(path: Path) -> None:
    with open_file(path) as file, pytest.raises(UgsepError, match="data became shorter while it was read"):
        file.read(SIZE - 10, 20, aligned_room(3 * BLOCK))
