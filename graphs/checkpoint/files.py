"""The safetensors files of a checkpoint: one file, or shards and their index. Only headers are read.

A sharded checkpoint has ``model.safetensors.index.json`` with ``weight_map`` (weight -> shard), as Hugging Face
writes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from graphs.base.config import check_plain
from graphs.base.errors import UgsepError, nearest
from graphs.base.json_text import read_json
from graphs.base.regular_file import is_regular_file
from graphs.checkpoint.header import read_header

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl")
_MAX_FILE_NAME = 255  # bytes; beyond, a look at the file is an error of the system
DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "I32": torch.int32,
    "I64": torch.int64, "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64,
}  # fmt: skip


@dataclass(frozen=True)
class Stored:
    """Location of a weight: a row-major tensor ``offset`` bytes into ``file``."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int


def weight_files(folder: Path) -> tuple[Path, ...]:
    """Return the files that hold the weights, the index first if there is one.

    Raises:
        UgsepError: no weights, an invalid index, or something else than a file in the place of either.
    """
    if _is_file(folder / SINGLE):
        return (folder / SINGLE,)
    if _is_file(folder / INDEX):
        return (folder / INDEX, *sorted({folder / shard for shard in _weight_map(folder / INDEX).values()}))
    pickles = [p.name for p in sorted(folder.glob("*")) if p.suffix in PICKLES]
    found = f" (found {pickles[0]}: pickles are not accepted, convert it to safetensors)" if pickles else ""
    raise UgsepError(
        f"no weights at {folder / SINGLE}{found}; a checkpoint is config.json and model.safetensors, "
        f"or shards and {INDEX}"
    )


def stored_weights(folder: Path) -> dict[str, Stored]:
    """Return the location of every weight of a checkpoint folder.

    Raises:
        UgsepError: no weights, a missing or truncated shard, or an index that does not match its shards.
    """
    first, *shards = weight_files(folder)
    if first.name != INDEX:
        return _header(first)
    promised = _weight_map(first)
    found: dict[str, Stored] = {}
    for shard in shards:
        if not _is_file(shard):
            raise UgsepError(f"{first}: shard '{shard.name}' is missing; copy it next to the index")
        for name, stored in _header(shard).items():
            if promised.get(name) != shard.name:
                known = [n for n, s in promised.items() if s == shard.name]
                raise UgsepError(
                    f"{shard}: unknown weight '{name}', not listed for this shard in the index{nearest(name, known)}"
                )
            found[name] = stored
    for name, shard_name in promised.items():
        if name not in found:
            raise UgsepError(
                f"{folder / shard_name}: weight '{name}' is missing, although the index lists it here; copy it again"
            )
    return found


def check_weights(expected: Mapping[str, Tensor], stored: Mapping[str, Stored], location: Path) -> None:
    """Reject a checkpoint whose weights differ from a model's in name, shape or sort of number.

    Raises:
        UgsepError: a missing or unknown weight, a wrong shape, or integers for floats or the other way round.
    """
    for name in expected:
        if name not in stored:
            raise UgsepError(
                f"{location}: weight '{name}' is missing{nearest(name, stored)}; is config.json from this model?"
            )
    for name, value in stored.items():
        if name not in expected:
            raise UgsepError(
                f"{location}: unknown weight '{name}'{nearest(name, expected)}; is config.json from this model?"
            )
        if value.shape != tuple(expected[name].shape):
            want = tuple(expected[name].shape)
            raise UgsepError(
                f"{location}: weight '{name}' has shape {value.shape}, config.json requires {want}; "
                "use a matching pair"
            )
        if value.dtype.is_floating_point != expected[name].dtype.is_floating_point:
            raise UgsepError(
                f"{location}: weight '{name}' is {_words(value.dtype)}, the model requires "
                f"{_words(expected[name].dtype)}; save the checkpoint in floating point, not quantized"
            )


def _words(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def check_finite(name: str, value: Tensor, location: Path) -> None:
    """Reject NaN and infinite weights.

    Raises:
        UgsepError: the message has their number.
    """
    if value.is_floating_point() and not bool(torch.isfinite(value).all()):
        bad = int((~torch.isfinite(value)).sum())
        raise UgsepError(
            f"{location}: weight '{name}' has {bad} NaN or infinite values; retrain or repair the checkpoint"
        )


def _weight_map(index: Path) -> dict[str, str]:
    document = read_json(index.read_bytes(), str(index), "save the checkpoint again")
    check_plain(document, str(index))
    found = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(found, dict) or not all(isinstance(v, str) for v in found.values()):
        raise UgsepError(f"{index} has no 'weight_map' from weights to shards; save the checkpoint again")
    for shard in found.values():
        if Path(shard).name != shard:
            raise UgsepError(f"{index}: shard '{shard:.60}' is outside its folder; save the checkpoint again")
        if not shard.endswith(".safetensors") or len(shard.encode()) > _MAX_FILE_NAME:
            raise UgsepError(f"{index}: shard '{shard:.60}' is not a .safetensors file; save the checkpoint again")
    return found


def _header(file: Path) -> dict[str, Stored]:
    entries, _ = read_header(file, "save the checkpoint again")
    for name, entry in entries.items():
        if entry.dtype not in DTYPES:
            raise UgsepError(f"{file}: weight '{name}' is {entry.dtype}; store it as BF16 or F32")
    return {n: Stored(file, DTYPES[entry.dtype], entry.shape, entry.offset) for n, entry in entries.items()}


def _is_file(path: Path) -> bool:
    return is_regular_file(path, "copy the checkpoint again")


def fingerprint(folder: Path) -> list[list[str | int]]:
    """Return name, size, mtime and ctime of the weight files: a cheap way to tell checkpoints apart.

    Unlike mtime, ctime cannot be set back.
    """
    stats = ((p.name, p.stat()) for p in weight_files(folder))
    return [[name, s.st_size, s.st_mtime_ns, s.st_ctime_ns] for name, s in stats]
