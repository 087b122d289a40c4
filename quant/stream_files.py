"""The data files of one side while they grow: units of weights written at their place, and checked again later."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from export.constants import Box
from quant import numerics
from quant.gemms import Array
from quant.pieces import Piece
from quant.rewrite import Encoded, scale_of_matmul
from quant.stream_layout import Place


@dataclass(frozen=True)
class SideFiles:
    """The data files of one side while they grow: values of all weights, and their scales."""

    data: int
    scale_data: int
    data_path: Path
    scale_path: Path

    def write(self, place: Place, box: Box, piece: Piece) -> None:
        """Write a unit to its place."""
        size = place.bits // 8
        _write_box(self.data, piece.values, place.weight.shape, box, place.offset, size)
        if piece.scale is not None:
            _write_box(self.scale_data, piece.scale, place.scale_shape, place.scale_box(box), place.scale_offset, 4)

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
        return joined_digest(digests) == entry.get("sha256")

    def encoded(self, place: Place, blob: str) -> Encoded:
        """Return where a finished weight's constant lies and its scales as the graph holds them."""
        scales = self.scales(place)
        if scales is None:
            return Encoded(blob, place.offset, place.length)
        if place.weight.kind == "table":
            return Encoded(blob, place.offset, place.length, scales, 0)
        scale, axis, block = scale_of_matmul(scales, place.weight.shape[-2])
        return Encoded(blob, place.offset, place.length, scale, axis, block)

    def scales(self, place: Place) -> numerics.Floats | None:
        """Return a finished weight's scales, None for FP16."""
        if not place.scale_shape:
            return None
        raw = os.pread(self.scale_data, place.scale_bytes, place.scale_offset)
        return np.frombuffer(raw, np.float32).reshape(place.scale_shape)

    def _values(self, place: Place) -> Array:
        dtype = np.int8 if place.bits == 8 else np.float16
        return np.memmap(self.data_path, dtype, "r", place.offset, place.weight.shape)


def unit_digest(values: Array, scale: Array | None) -> str:
    """Return the sha256 of a unit's values and scales."""
    digest = hashlib.sha256(np.ascontiguousarray(values).data)
    if scale is not None:
        digest.update(np.ascontiguousarray(scale).data)
    return digest.hexdigest()


def joined_digest(digests: Iterable[str]) -> str:
    """Return the sha256 that stands for a whole weight in the journal."""
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def _slices(box: Box) -> tuple[slice, ...]:
    return tuple(slice(low, high) for low, high in box)


def _write_box(file: int, values: Array, shape: tuple[int, ...], box: Box, offset: int, size: int) -> None:
    """Write a box of a row-major tensor at its place; whole rows in one go, else row by row."""
    width = shape[-1]
    rows = np.ascontiguousarray(values).reshape(-1, box[-1][1] - box[-1][0])
    lead = [low for low, _ in box[:-1]]
    first = int(np.ravel_multi_index(lead, shape[:-1])) if lead else 0
    if rows.shape[1] == width or not lead:
        _write(file, rows.reshape(-1), offset + (first * width + (0 if lead else box[0][0])) * size)
        return
    for number, row in enumerate(rows):
        _write(file, row, offset + ((first + number) * width + box[-1][0]) * size)


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
