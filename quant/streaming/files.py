"""The data files of one side while they grow: chunks of weights are written to slots, and verified on resume."""

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
from export.weights.lazy_weights import Slice
from quant.arrays import Array, Floats
from quant.graph.rewrite import Encoded, scale_of_matmul
from quant.streaming.chunks import Quantized
from quant.streaming.layout import Slot


@dataclass(frozen=True)
class SideFiles:
    """The data files of one side while they grow: the values of all weights, and their scales.

    ``direct`` is the file of values opened with O_DIRECT, None if that is unsupported. Writing through the file cache
    costs more processor time than quantizing does, and nothing here reads the values again.
    """

    data: int
    scale_data: int
    data_path: Path
    scale_path: Path
    direct: int | None = None

    def write(self, slot: Slot, bounds: Slice, chunk: Quantized) -> None:
        """Write a chunk to its slot."""
        size = slot.bits // 8
        done = self._write_directly(slot, bounds, chunk.values)
        if not done or done < chunk.values.nbytes:
            _write_slice(self.data, chunk.values, slot.weight.shape, bounds, slot.offset, size, done)
        if chunk.scale is not None:
            _write_slice(
                self.scale_data, chunk.scale, slot.scale_shape, slot.scale_slice(bounds), slot.scale_offset, 4
            )

    def _write_directly(self, slot: Slot, bounds: Slice, values: Array) -> int:
        """Write the whole blocks of a chunk of whole rows with O_DIRECT; returns the bytes written."""
        offset = _start(slot.weight.shape, bounds, slot.offset, slot.bits // 8)
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

    def holds(self, slot: Slot, entry: Mapping[str, Any]) -> bool:
        """Whether a weight's bytes match the checksums of its journal entry."""
        end, scale_end = slot.offset + slot.length, slot.scale_offset + slot.scale_bytes
        if self.data_path.stat().st_size < end or self.scale_path.stat().st_size < scale_end:
            return False
        scales = self.scales(slot)
        digests = []
        for bounds in slot.chunks():
            scale = None if scales is None else scales[_slices(slot.scale_slice(bounds))]
            digests.append(chunk_digest(self._values(slot)[_slices(bounds)], scale))
        return joined_digest(digests) == entry.get("crc32")

    def encoded(self, slot: Slot, blob: str) -> Encoded:
        """Return the location of a finished weight's constant, and its scales in the shape the graph holds."""
        scales = self.scales(slot)
        if scales is None:
            return Encoded(blob, slot.offset, slot.length)
        if slot.weight.kind == "table":
            return Encoded(blob, slot.offset, slot.length, scales, 0)
        scale, axis, block = scale_of_matmul(scales, slot.weight.shape[-2])
        return Encoded(blob, slot.offset, slot.length, scale, axis, block)

    def scales(self, slot: Slot) -> Floats | None:
        """Return a finished weight's scales, None for FP16."""
        if not slot.scale_shape:
            return None
        raw = os.pread(self.scale_data, slot.scale_bytes, slot.scale_offset)
        return np.frombuffer(raw, np.float32).reshape(slot.scale_shape)

    def _values(self, slot: Slot) -> Array:
        dtype = np.int8 if slot.bits == 8 else np.float16
        return np.memmap(self.data_path, dtype, "r", slot.offset, slot.weight.shape)


@contextmanager
def opened(data: Path, scales: Path) -> Iterator[SideFiles]:
    """Open the data files of a side, creating those that are missing."""
    for path in (data, scales):
        path.touch()
    direct = open_direct(data, os.O_WRONLY)
    try:
        with data.open("r+b") as values, scales.open("r+b") as scale_data:
            yield SideFiles(values.fileno(), scale_data.fileno(), data, scales, direct)
    finally:
        if direct is not None:
            os.close(direct)


def chunk_digest(values: Array, scale: Array | None) -> int:
    """Return the CRC-32 of a chunk's values and scales, which detects what a kill or the disk left half-written.

    A stronger hash would add nothing: whoever can write the data can write the journal too.
    """
    digest = zlib.crc32(np.ascontiguousarray(values).data.cast("B"))
    return digest if scale is None else zlib.crc32(np.ascontiguousarray(scale).data.cast("B"), digest)


def joined_digest(digests: Iterable[int]) -> str:
    """Return the checksum of a whole weight, as it is journalled."""
    return " ".join(f"{digest:08x}" for digest in digests)


def _slices(bounds: Slice) -> tuple[slice, ...]:
    return tuple(slice(low, high) for low, high in bounds)


def _start(shape: tuple[int, ...], bounds: Slice, offset: int, size: int) -> int | None:
    """Return the file offset of a region of a row-major tensor, None if the region is not contiguous."""
    width = shape[-1]
    lead = [low for low, _ in bounds[:-1]]
    if lead and bounds[-1] != (0, width):
        return None
    first = int(np.ravel_multi_index(lead, shape[:-1])) if lead else 0
    return offset + (first * width + (0 if lead else bounds[0][0])) * size


def _write_slice(
    file: int, values: Array, shape: tuple[int, ...], bounds: Slice, offset: int, size: int, done: int = 0
) -> None:
    """Write a region of a row-major tensor from byte ``done`` on: in one go if contiguous, else row by row."""
    start = _start(shape, bounds, offset, size)
    if start is not None:
        _write(file, np.ascontiguousarray(values).reshape(-1).view(np.uint8)[done:], start + done)
        return
    rows = np.ascontiguousarray(values).reshape(-1, bounds[-1][1] - bounds[-1][0])
    first = int(np.ravel_multi_index([low for low, _ in bounds[:-1]], shape[:-1]))
    for number, row in enumerate(rows):
        _write(file, row, offset + ((first + number) * shape[-1] + bounds[-1][0]) * size)


def _write(file: int, values: Array, offset: int) -> None:
    view, done = values.data.cast("B"), 0
    while done < len(view):
        done += os.pwrite(file, view[done:], offset + done)


def reserve(file: int, size: int) -> None:
    """Allocate space now, so that a full disk fails early; set only the size if the file system cannot."""
    os.truncate(file, size)
    allocate: Callable[[int, int, int], None] | None = getattr(os, "posix_fallocate", None)
    if allocate is None or not size:
        return
    try:
        allocate(file, 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise
