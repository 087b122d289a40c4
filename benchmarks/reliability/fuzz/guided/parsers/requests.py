"""Request files of the three formats."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.reliability.fuzz.guided.parser import Parser
from benchmarks.reliability.fuzz.guided.parsers.sound import ITEM, TASK, USER, sound_arrays
from benchmarks.reliability.fuzz.mutate.byte_level import mutate_bytes
from benchmarks.reliability.fuzz.mutate.request_files import arrow_bytes, mutate_npz, mutate_table, npz_bytes
from engines.backends.built_engine import TensorSpec
from quant.requests.readers import read_requests
from quant.requests.spec import REQUEST_ID, InputSpec, RequestSpec

__all__ = ["arrow", "npz", "parquet"]

_FRESH = 0.5  # of the mutations are of the sound file; the others change bytes of one that reached new code


def npz(folder: Path) -> Parser:
    """An npz archive."""
    arrays = _columns()
    sound = tuple(npz_bytes(arrays, random.Random(seed)) for seed in range(2))
    return _parser(folder / "requests.npz", sound, lambda rng: mutate_npz(arrays, rng))


def parquet(folder: Path) -> Parser:
    """A Parquet file."""
    return _table(folder, "parquet")


def arrow(folder: Path) -> Parser:
    """An Arrow file or stream."""
    return _table(folder, "arrow")


def _table(folder: Path, suffix: str) -> Parser:
    table = pa.table(
        {
            name: pa.array(value)
            if value.ndim == 1
            else pa.FixedSizeListArray.from_arrays(pa.array(value.reshape(-1)), value.shape[1])
            for name, value in _columns().items()
        }
    )
    sound = tuple(arrow_bytes(table, suffix, random.Random(seed)) for seed in range(4))
    return _parser(folder / f"requests.{suffix}", sound, lambda rng: mutate_table(table, suffix, rng))


def _parser(path: Path, sound: tuple[bytes, ...], fresh: Callable[[random.Random], bytes]) -> Parser:
    spec = RequestSpec(tuple(map(_input, USER)), tuple(map(_input, ITEM)), (TASK.name,))

    def parse(data: bytes) -> None:
        path.unlink(missing_ok=True)  # Arrow may still map the last one
        path.write_bytes(data)
        for request in read_requests([path], spec):
            if {len(value) for value in request.items.values()} != {request.candidates}:
                raise AssertionError("features of a request have different numbers of rows")

    def mutate(data: bytes, rng: random.Random) -> bytes:
        return fresh(rng) if rng.random() < _FRESH else mutate_bytes(data, rng)

    return Parser(parse, sound, mutate)


def _input(spec: TensorSpec) -> InputSpec:
    return InputSpec(spec.name, spec.dtype, tuple(int(size) for size in spec.shape[1:]))


def _columns() -> dict[str, np.ndarray]:
    """Return two requests of two candidates, a row per candidate."""
    arrays = sound_arrays(2, 4)
    index = np.array([0, 0, 1, 1])
    user = {spec.name: arrays[spec.name][index] for spec in USER}
    items = {spec.name: arrays[spec.name] for spec in ITEM}
    return {REQUEST_ID: index.astype(np.int64), **user, **items, TASK.name: index.astype(np.float32)}
