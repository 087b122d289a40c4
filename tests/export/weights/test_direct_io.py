"""Files are read the same past the file cache and through it, from any offset to any other."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from export.weights.direct_io import BLOCK, File, aligned_buffer, open_file, reading_ahead
from graphs.base.errors import UgsepError

SIZE = 3 * BLOCK + 1234


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("disk") / "data"
    found.write_bytes(torch.randint(0, 256, (SIZE,), dtype=torch.uint8).numpy().tobytes())
    return found


@settings(max_examples=60, deadline=None)
@given(ends=st.tuples(st.integers(0, SIZE), st.integers(0, SIZE)), dropped=st.booleans(), buffer=st.booleans())
def test_bytes_are_those_of_the_file(path: Path, ends: tuple[int, int], dropped: bool, buffer: bool) -> None:
    low, high = sorted(ends)
    with open_file(path) as file:
        if dropped:  # else all of it is in the cache
            os.fsync(file.cached)
            os.posix_fadvise(file.cached, 0, 0, os.POSIX_FADV_DONTNEED)
        found = file.read(low, high - low, aligned_buffer(5 * BLOCK) if buffer else None)
        assert found.numpy().tobytes() == path.read_bytes()[low:high]


def test_what_was_not_read_ahead_is_read_past_the_cache_into_the_room(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used, preadv = [], os.preadv

    def watched(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        used.append(descriptor)
        return preadv(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", watched)
    with open_file(path) as file:
        if file.direct is None:
            pytest.skip("this file system reads through the cache only")
        buffer = aligned_buffer(5 * BLOCK)
        found = file.read(BLOCK + 8, 2 * BLOCK, buffer, 8)
        assert (used, found.data_ptr()) == ([file.direct], buffer.data_ptr() + 8)
        assert found.numpy().tobytes() == path.read_bytes()[BLOCK + 8 : 3 * BLOCK + 8]
        used.clear()  # elements of 8 bytes would lie askew in the buffer
        assert file.read(BLOCK + 2, 8, buffer, 8).numpy().tobytes() == path.read_bytes()[BLOCK + 2 : BLOCK + 10]
        assert used == [file.cached]
        used.clear()
        file.ahead = 3 * BLOCK
        assert file.read(BLOCK, 2 * BLOCK, buffer).numpy().tobytes() == path.read_bytes()[BLOCK : 3 * BLOCK]
        assert used == [file.cached]


def test_a_room_too_small_and_a_file_without_a_second_door_are_no_trouble(path: Path) -> None:
    with open_file(path) as file:
        want = path.read_bytes()[100:5000]
        assert file.read(100, 4900, aligned_buffer(BLOCK)).numpy().tobytes() == want
        assert File(path, file.cached, None).read(100, 4900, aligned_buffer(3 * BLOCK)).numpy().tobytes() == want


def test_a_file_that_became_shorter_is_named(path: Path) -> None:
    with open_file(path) as file, pytest.raises(UgsepError, match="data was truncated while it was read"):
        file.read(SIZE - 10, 20, aligned_buffer(3 * BLOCK))


def test_what_is_read_ahead_is_in_the_file_cache(tmp_path: Path) -> None:
    """Twice the 8 MiB and more that the system reads when it is only told that the pages will be needed."""
    path = tmp_path / "data"
    want = os.urandom(24 << 20)
    path.write_bytes(want)
    with open_file(path) as file:
        if file.direct is None:
            pytest.skip("the file system has no way past the file cache")
        os.fsync(file.cached)
        os.posix_fadvise(file.cached, 0, 0, os.POSIX_FADV_DONTNEED)
        with reading_ahead([file], 20 << 20):
            deadline = time.monotonic() + 60
            while file.ahead < 20 << 20 and time.monotonic() < deadline:
                time.sleep(0.001)
        assert file.ahead == 20 << 20
        there = bytearray(20 << 20)
        assert os.preadv(file.cached, [there], 0, os.RWF_NOWAIT) == len(there)
        assert there == want[: 20 << 20]
        for offset in (5000, (20 << 20) - 4000, 22 << 20):  # in the cache, across its end, on disk
            assert (
                file.read(offset, 8000, aligned_buffer(4 * BLOCK)).numpy().tobytes() == want[offset : offset + 8000]
            )


def test_reading_ahead_ends_when_it_is_told_to_and_with_the_files(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(bytes(3 * BLOCK))
    with open_file(path) as file:
        with reading_ahead([file], 1 << 30):
            pass
        assert file.ahead in (0, 3 * BLOCK)
        assert all(t.name != "read ahead" for t in threading.enumerate())
