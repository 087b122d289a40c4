"""The header of a safetensors file: the type, the shape and the place of every tensor."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors

from graphs.base.errors import UgsepError
from graphs.base.json_text import read_json
from graphs.base.json_words import named_type

_METADATA = "__metadata__"


@dataclass(frozen=True)
class TensorEntry:
    """A row-major tensor ``offset`` bytes into its file; ``dtype`` is the format's name, such as F32."""

    dtype: str
    shape: tuple[int, ...]
    offset: int


def read_header(file: Path, fix: str) -> tuple[dict[str, TensorEntry], Mapping[str, str]]:
    """Return the tensors of a safetensors file by name, and its metadata; ``fix`` ends messages.

    Raises:
        UgsepError: the file cannot be opened, is not safetensors, or is shorter or longer than its header says.
    """
    try:
        # The library checks types, shapes and offsets, and that the file has exactly the length that they give. It
        # does not tell the offsets.
        with safetensors.safe_open(file, framework="np"):
            pass
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            text = stream.read(length)
    except (safetensors.SafetensorError, OSError) as error:
        raise UgsepError(f"{file} is truncated or not safetensors ({error}); {fix}") from error
    entries: dict[str, Any] = read_json(text, f"the header of {file}", fix)
    metadata = entries.pop(_METADATA, None) or {}
    return {name: _entry(file, name, entry, 8 + length, fix) for name, entry in entries.items()}, metadata


def _entry(file: Path, name: str, entry: Any, start: int, fix: str) -> TensorEntry:
    if not isinstance(entry, dict):  # the library also takes a list of the three values
        raise UgsepError(
            f"{file}: the header's entry of '{name:.60}' is {named_type(type(entry))}, not a mapping; {fix}"
        )
    return TensorEntry(entry["dtype"], tuple(entry["shape"]), start + entry["data_offsets"][0])
