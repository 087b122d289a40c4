"""Random requests for a ranker, and the same values in other arrays, other values, and no arrays at all."""

from __future__ import annotations

import random
import tempfile
from array import array as plain_array
from collections import deque
from collections.abc import Callable, Mapping
from datetime import date
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from engines.backends.built_engine import TensorSpec
from engines.backends.contract import Array

__all__ = ["OTHER_VALUES", "SAME_VALUES", "WRONG", "random_rows"]


class _Tagged(np.ndarray):
    """A subclass as libraries have them: it changes what an operation on it returns."""

    def __array_wrap__(self, value: Any, context: Any = None, return_scalar: bool = False) -> Any:
        return np.asarray(value)[..., None]


def random_rows(
    specs: tuple[TensorSpec, ...], tables: Mapping[str, int], rows: int, rng: random.Random
) -> dict[str, Array]:
    """Return random features [rows, ...]: floats normal, ids within their tables."""
    generator = np.random.default_rng(rng.getrandbits(64))
    found: dict[str, Array] = {}
    for spec in specs:
        shape = (rows, *(int(size) for size in spec.shape[1:]))
        if np.dtype(spec.dtype).kind == "f":
            found[spec.name] = generator.standard_normal(shape).astype(spec.dtype)
        else:
            found[spec.name] = generator.integers(0, tables[spec.name], shape).astype(spec.dtype)
    return found


def _strided(value: Array, rng: random.Random) -> Any:
    wide = np.zeros((*value.shape[:-1], 3 * value.shape[-1]), value.dtype)
    wide[..., ::3] = value
    return wide[..., ::3]


def _reversed(value: Array, rng: random.Random) -> Any:
    return np.ascontiguousarray(value[::-1])[::-1]


def _of_rows(value: Array, rng: random.Random) -> Any:
    """Every second row of a larger array."""
    return np.repeat(value, 2, axis=0)[::2]


def _unaligned(value: Array, rng: random.Random) -> Any:
    return np.frombuffer(b"\0" + value.tobytes(), value.dtype, offset=1).reshape(value.shape)


def _read_only(value: Array, rng: random.Random) -> Any:
    made = value.copy()
    made.flags.writeable = False
    return made


def _record_field(value: Array, rng: random.Random) -> Any:
    records = np.zeros(len(value), [("pad", "u1"), ("x", value.dtype, value.shape[1:])])
    records["x"] = value
    return records["x"]


def _mapped(value: Array, rng: random.Random) -> Any:
    with tempfile.TemporaryFile() as file:  # the map keeps the content
        made: Any = np.memmap(file, value.dtype, "w+", shape=value.shape)
    made[...] = value
    return made


def _repeated_row(value: Array, rng: random.Random) -> Any:
    """Strides of 0, with the values that they give written back into the request."""
    value[...] = value[:1]
    return np.broadcast_to(value[:1], value.shape)


#: Arrays of the same values: the answer is that of the plain array, or a refusal.
SAME_VALUES: dict[str, Callable[[Array, random.Random], Any]] = {
    "Fortran order": lambda value, rng: np.asfortranarray(value),
    "strided": _strided,
    "rows backwards": _reversed,
    "every second row": _of_rows,
    "unaligned": _unaligned,
    "read-only": _read_only,
    "field of records": _record_field,
    "memmap": _mapped,
    "strides of 0": _repeated_row,
    "np.matrix": lambda value, rng: np.asmatrix(value) if value.ndim == 2 else value,
    "subclass": lambda value, rng: value.view(_Tagged),
    "masked array, nothing masked": lambda value, rng: np.ma.masked_array(value),
    "other byte order": lambda value, rng: value.astype(value.dtype.newbyteorder()),
    "from DLPack": lambda value, rng: np.from_dlpack(torch.from_numpy(value)),
    "named tensor's array": lambda value, rng: torch.from_numpy(value).numpy(),
}


def _one(value: Array, rng: random.Random, odd: tuple[Any, ...]) -> Array:
    made = value.copy()
    made.flat[rng.randrange(made.size)] = rng.choice(odd)
    return made


def _float16(value: Array, rng: random.Random) -> Any:
    """Half precision, which the ranker takes for float32; the request gets the rounded values."""
    if value.dtype != np.float32:
        return value
    value[...] = value.astype(np.float16)
    return value.astype(np.float16)


#: Sound values of another kind; the answer is that of the values, which are written back into the plain array.
OTHER_VALUES: dict[str, Callable[[Array, random.Random], Any]] = {
    "float16": _float16,
    "negative zero": lambda value, rng: _written(value, np.where(value == 0, -0.0, value).astype(value.dtype)),
    "subnormal": lambda value, rng: _written(value, _one(value, rng, (1e-42,)) if value.dtype.kind == "f" else value),
}


def _written(value: Array, made: Array) -> Array:
    value[...] = made
    return made


def _bad_value(value: Array, rng: random.Random) -> Any:
    floats = (np.nan, np.inf, -np.inf)
    return _one(value, rng, floats if value.dtype.kind == "f" else (-1, 2**31, 2**62, -(2**63), 10**6))


def _masked(value: Array, rng: random.Random) -> Any:
    """A bad value behind a mask, which NumPy's reductions leave out."""
    bad = _bad_value(value, rng)
    return np.ma.masked_array(bad, mask=bad != value)


#: What has to be refused.
WRONG: dict[str, Callable[[Array, random.Random], Any]] = {
    "bad value": _bad_value,
    "bad value, strided": lambda value, rng: _strided(_bad_value(value, rng), rng),
    "bad value behind a mask": _masked,
    "bad value in a subclass": lambda value, rng: _bad_value(value, rng).view(_Tagged),
    "list": lambda value, rng: value.tolist(),
    "tuple": lambda value, rng: tuple(value),
    "deque": lambda value, rng: deque(value.ravel()),
    "torch tensor": lambda value, rng: torch.from_numpy(value),
    "Arrow array": lambda value, rng: pa.array(value.ravel()),
    "memoryview": lambda value, rng: value.data,
    "bytes": lambda value, rng: value.tobytes(),
    "array.array": lambda value, rng: plain_array("d", value.ravel().tolist()),
    "scalar": lambda value, rng: value.ravel()[0],
    "None": lambda value, rng: None,
    "text": lambda value, rng: "x\n\x1b[1m",
    "a date": lambda value, rng: date(2020, 1, 1),
    "dtype": lambda value, rng: value.astype(
        rng.choice(
            [d for d in ("f8", "i4", "u8", "?", "c16", "O", "S8", "U8", "M8[s]", "i1") if d != value.dtype.str[1:]]
        )
    ),
    "records": lambda value, rng: np.zeros(value.shape, [("x", value.dtype)]),
    "no rows": lambda value, rng: value[:0],
    "no axes": lambda value, rng: np.array(value.ravel()[0]),
    "an axis more": lambda value, rng: value[..., None],
    "an axis in front": lambda value, rng: value[None],
    "wider": lambda value, rng: np.concatenate([value, value], axis=-1),
    "no columns": lambda value, rng: value[..., :0],
    "a row more": lambda value, rng: np.concatenate([value, value[:1]]),
    "many axes": lambda value, rng: value.reshape((*value.shape, *[1] * 20)),
    "huge": lambda value, rng: np.broadcast_to(value[:1], (1 << 40, *value.shape[1:])),
    "type": lambda value, rng: type(value),
    "NaT": lambda value, rng: np.full(value.shape, np.datetime64("NaT")),
}
