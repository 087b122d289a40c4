"""The data files of one side while they grow: units of weights written at their place, and checked again later."""

from __future__ import annotations

import errno
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from export.weights.direct_io import BLOCK, open_direct
from export.weights.lazy_weights import Box
from quant.arrays import Array, Floats
from quant.graph.rewrite import Encoded, scale_of_matmul
from quant.streaming.chunks import Piece
from quant.streaming.layout import Place


@dataclass(frozen=True)
class SideFiles:
    """The data files of one side while they grow: values of all weights, and their scales.

    ``direct`` is the file of values again, opened past the file cache, where the system lets it. Writing through the
    cache costs more processor time than quantizing does, and nothing here reads the values again.
    """

    data: int
    scale_data: int
    data_path: Path
    scale_path: Path
    direct: int | None = None

    def write(self, place: Place, box: Box, piece: Piece) -> None:
        """Write a unit to its place."""
        size = place.bits // 8
        done = self._write_directly(place, box, piece.values)
        if not done or done < piece.values.nbytes:
            _write_box(self.data, piece.values, place.weight.shape, box, place.offset, size, done)
        if piece.scale is not None:
            _write_box(self.scale_data, piece.scale, place.scale_shape, place.scale_box(box), place.scale_offset, 4)

    def _write_directly(self, place: Place, box: Box, values: Array) -> int:
        """Write the whole blocks of a unit whose rows are whole; returns the bytes written."""
        offset = _start(place.weight.shape, box, place.offset, place.bits // 8)
        whole = values.nbytes // BLOCK * BLOCK
        if self.direct is None or offset is None or offset % BLOCK or values.ctypes.data % BLOCK or not whole:
            return 0
        view = values.reshape(-1).view(np.uint8)[:whole]
        try:
            _write(self.direct, view, offset)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return 0  # larger blocks than BLOCK
        return whole

    def holds(self, place: Place, entry: Mapping[str, Any]) -> bool:
        """Say whether a weight's bytes are those that the journal's entry is about."""
        end, scale_end = place.offset + place.length, place.scale_offset + place.scale_bytes
        if self.data_path.stat().st_size < end or self.scale_path.stat().st_size < scale_end:
            return False
        scales = self.scales(place)
        digests = []
        for box in place.units():
            scale = None if scales is None else scales[_slices(place.scale_box(box))]
            digests.append(unit_digest(self._values(place)[_slices(box)], scale))
        return joined_digest(digests) == entry.get("crc32")

    def encoded(self, place: Place, blob: str) -> Encoded:
        """Return where a finished weight's constant lies and its scales as the graph holds them."""
        scales = self.scales(place)
        if scales is None:
            return Encoded(blob, place.offset, place.length)
        if place.weight.kind == "table":
            return Encoded(blob, place.offset, place.length, scales, 0)
        scale, axis, block = scale_of_matmul(scales, place.weight.shape[-2])
        return Encoded(blob, place.offset, place.length, scale, axis, block)

    def scales(self, place: Place) -> Floats | None:
        """Return a finished weight's scales, None for FP16."""
        if not place.scale_shape:
            return None
        raw = os.pread(self.scale_data, place.scale_bytes, place.scale_offset)
        return np.frombuffer(raw, np.float32).reshape(place.scale_shape)

    def _values(self, place: Place) -> Array:
        dtype = np.int8 if place.bits == 8 else np.float16
        return np.memmap(self.data_path, dtype, "r", place.offset, place.weight.shape)


@contextmanager
def opened(data: Path, scales: Path) -> Iterator[SideFiles]:
    """Open the data files of a side, which are made where they are not there."""
    for path in (data, scales):
        path.touch()
    direct = open_direct(data, os.O_WRONLY)
    try:
        with data.open("r+b") as values, scales.open("r+b") as scale_data:
            yield SideFiles(values.fileno(), scale_data.fileno(), data, scales, direct)
    finally:
        if direct is not None:
            os.close(direct)


def unit_digest(values: Array, scale: Array | None) -> int:
    """Return the CRC-32 of a unit's values and scales: it tells what a kill or the disk left half written.

    No more is wanted of it: whoever can write the data can write the journal too, whatever hash is in it.
    """
    digest = zlib.crc32(np.ascontiguousarray(values).data.cast("B"))
    return digest if scale is None else zlib.crc32(np.ascontiguousarray(scale).data.cast("B"), digest)


def joined_digest(digests: Iterable[int]) -> str:
    """Return what stands for a whole weight in the journal."""
    return " ".join(f"{digest:08x}" for digest in digests)


def _slices(box: Box) -> tuple[slice, ...]:
    return tuple(slice(low, high) for low, high in box)


def _start(shape: tuple[int, ...], box: Box, offset: int, size: int) -> int | None:
    """Return where a box of a row-major tensor starts in its file, None where the box is not one run of bytes."""
    width = shape[-1]
    lead = [low for low, _ in box[:-1]]
    if lead and box[-1] != (0, width):
        return None
    first = int(np.ravel_multi_index(lead, shape[:-1])) if lead else 0
    return offset + (first * width + (0 if lead else box[0][0])) * size


def _write_box(
    file: int, values: Array, shape: tuple[int, ...], box: Box, offset: int, size: int, done: int = 0
) -> None:
    """Write a box of a row-major tensor, but for its first bytes ``done``: whole rows in one go, else row by row."""
    start = _start(shape, box, offset, size)
    if start is not None:
        _write(file, np.ascontiguousarray(values).reshape(-1).view(np.uint8)[done:], start + done)
        return
    rows = np.ascontiguousarray(values).reshape(-1, box[-1][1] - box[-1][0])
    first = int(np.ravel_multi_index([low for low, _ in box[:-1]], shape[:-1]))
    for number, row in enumerate(rows):
        _write(file, row, offset + ((first + number) * shape[-1] + box[-1][0]) * size)


def _write(file: int, values: Array, offset: int) -> None:
    view, done = values.data.cast("B"), 0
    while done < len(view):
        done += os.pwrite(file, view[done:], offset + done)


def reserve(file: int, size: int) -> None:
    """Take the space now, so that a full disk shows before the work; where that is not to be had, set the size."""
    os.truncate(file, size)
    allocate: Callable[[int, int, int], None] | None = getattr(os, "posix_fallocate", None)
    if allocate is None or not size:
        return
    try:
        allocate(file, 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise
