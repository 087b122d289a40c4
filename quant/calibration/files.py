"""Calibrations on disk: a JSON file and the statistics as safetensors, written and read as a pair."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import save_file

from graphs.base.config import check_plain, parse
from graphs.base.errors import UgsepError
from graphs.base.json_text import read_json
from graphs.base.json_words import shown
from graphs.base.regular_file import is_regular_file
from graphs.checkpoint.header import read_header
from quant.arrays import Doubles
from quant.calibration.statistics import Calibration, InputStatistics, Samples, SideStatistics

FORMAT = 2
NAME = "calibration"
_AGAIN = "calibrate again"
_BLOCK_ELEMENTS = 1 << 18  # of a Gram matrix checked at a time: 2 MB, where a whole one may take gigabytes


def save_calibration(calibration: Calibration, folder: Path) -> tuple[Path, Path]:
    """Write ``calibration.json`` and ``calibration.safetensors`` into the folder; each file is replaced atomically.

    The JSON file holds the digest of the other, so a mixed pair is detected on reading.
    """
    folder.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, npt.NDArray[Any]] = {}
    sides: dict[str, Any] = {}
    for name, side in (("user", calibration.user), ("item", calibration.item)):
        for key, found in side.tensors.items():
            for part in ("squares", "sums", "low", "high", "gram"):
                values = getattr(found, part)
                if values is not None:
                    arrays[f"{name}/{key}/{part}"] = np.ascontiguousarray(values)
        sides[name] = {
            "graph_sha256": side.graph_sha256,
            "counts": {key: found.count for key, found in side.tensors.items()},
            "feeds": {weight: list(keys) for weight, keys in side.feeds.items()},
        }
    data, text = folder / f"{NAME}.safetensors", folder / f"{NAME}.json"
    token = _digest(arrays)
    document = {
        "format": FORMAT,
        "token": token,
        "samples": [vars(s) for s in calibration.samples],
        "sides": sides,
    }
    new_data, new_text = data.with_suffix(".safetensors.partial"), text.with_suffix(".json.partial")
    try:
        save_file(arrays, new_data, metadata={"token": token})
        new_text.write_text(json.dumps(document, indent=1, sort_keys=True))
        shutil.copymode(new_text, new_data)  # the library writes 0600, whatever the umask
        os.replace(new_data, data)
        os.replace(new_text, text)
    except SafetensorError as error:
        raise UgsepError(f"cannot write '{data}' ({error}); check permissions and free space") from error
    finally:
        new_data.unlink(missing_ok=True)
        new_text.unlink(missing_ok=True)
    return text, data


def _digest(arrays: Mapping[str, npt.NDArray[Any]]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(name.encode())
        digest.update(arrays[name].data)
    return digest.hexdigest()


def load_calibration(folder: Path) -> Calibration:
    """Read what :func:`save_calibration` wrote; ``folder`` may also be the JSON file.

    Raises:
        UgsepError: missing, damaged, of another format version, or files that do not belong together.
    """
    text = folder if folder.suffix == ".json" else folder / f"{NAME}.json"
    data = text.with_suffix(".safetensors")
    for path in (text, data):
        if not is_regular_file(path, _AGAIN):
            raise UgsepError(f"'{path}' does not exist; run quant calibrate")
    document = read_json(text.read_bytes(), f"'{text}' is damaged", _AGAIN)
    found = document.get("format") if isinstance(document, dict) else None
    if found != FORMAT:
        raise UgsepError(f"'{text}' has format {shown(found)}, not {FORMAT}; {_AGAIN}")
    check_plain(document, f"'{text}'")
    read = parse(_Document, document, f"'{text}'")
    try:
        arrays, token = _mapped(data)
        if token != read.token:
            raise UgsepError(f"'{text}' and '{data.name}' are of different runs; {_AGAIN}")
        return Calibration(
            _side("user", read.sides.user, arrays), _side("item", read.sides.item, arrays), read.samples
        )
    except (ValueError, KeyError) as error:
        raise UgsepError(f"'{text}' or '{data.name}' is damaged ({error}); {_AGAIN}") from error


@dataclass(frozen=True)
class _Side:
    graph_sha256: str
    counts: Mapping[str, int]
    feeds: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class _Sides:
    user: _Side
    item: _Side


@dataclass(frozen=True)
class _Document:
    """The content of calibration.json."""

    format: int
    token: str
    samples: tuple[Samples, ...]
    sides: _Sides


def _mapped(path: Path) -> tuple[dict[str, Doubles], str]:
    """Return the float64 arrays of a safetensors file, memory-mapped (Gram matrices are large), and its token."""
    tensors, metadata = read_header(path, _AGAIN)
    arrays: dict[str, Doubles] = {}
    for name, entry in tensors.items():
        if entry.dtype != "F64":
            raise ValueError(f"'{name}' is {entry.dtype}, not F64")
        # The library copies each array it returns.
        empty = 0 in entry.shape
        arrays[name] = np.empty(entry.shape) if empty else np.memmap(path, np.float64, "r", entry.offset, entry.shape)
    return arrays, metadata.get("token", "")


def _side(name: str, read: _Side, arrays: dict[str, Doubles]) -> SideStatistics:
    tensors = {
        key: _sound(
            f"{name}/{key}",
            InputStatistics(
                count,
                arrays[f"{name}/{key}/squares"],
                arrays[f"{name}/{key}/sums"],
                arrays[f"{name}/{key}/low"],
                arrays[f"{name}/{key}/high"],
                arrays.get(f"{name}/{key}/gram"),
            ),
        )
        for key, count in read.counts.items()
    }
    return SideStatistics(read.graph_sha256, tensors, read.feeds)


def _sound(name: str, found: InputStatistics) -> InputStatistics:
    """Return statistics that some inputs may have; anything else would quantize weights to nonsense."""
    shape = found.squares.shape
    if not shape or any(one.shape != shape for one in (found.sums, found.low, found.high)):
        raise ValueError(f"{name}: squares, sums, low and high differ in shape")
    if found.count < 0:
        raise ValueError(f"{name}: count {found.count} is negative")
    if found.gram is not None and found.gram.shape != (*shape, shape[-1]):
        raise ValueError(f"{name}: gram has shape {list(found.gram.shape)}, not {[*shape, shape[-1]]}")
    contradicting = ValueError(f"{name}: squares, sums, low and high contradict each other")
    if not found.count:
        gram = () if found.gram is None else (found.gram,)
        if any(one.any() for one in (found.squares, found.sums, *gram)):
            raise contradicting
        if not ((found.low == np.inf).all() and (found.high == -np.inf).all()):
            raise contradicting
        return found
    if not all(np.isfinite(one).all() for one in (found.squares, found.sums, found.low, found.high)):
        raise ValueError(f"{name}: a statistic is NaN or infinite")
    # By Cauchy and Schwarz, up to the rounding of sums of many values.
    most = np.sqrt(np.maximum(found.squares, 0.0)) * (np.sqrt(found.count) * (1 + 1e-6))
    if (found.squares < 0).any() or (found.low > found.high).any() or (np.abs(found.sums) > most).any():
        raise contradicting
    if found.gram is not None:
        _check_gram(name, found.squares, found.gram)
    return found


@np.errstate(over="ignore")  # differences of the largest numbers are infinite, and refused
def _check_gram(name: str, squares: Doubles, gram: Doubles) -> None:
    """Check that sum x x^T, [..., K, K], is symmetric, has ``squares`` [..., K] on its diagonal, and is bounded."""
    rounding = 1e-6  # far above that of float64 sums, far below what matters to a scheme
    inputs = squares.shape[-1]
    step = max(1, _BLOCK_ELEMENTS // max(1, inputs))
    for token in np.ndindex(squares.shape[:-1]):  # one empty index for a 2-D weight
        one, norms = gram[token], np.sqrt(squares[token])  # [K, K], [K]
        diagonal = np.abs(np.diagonal(one) - squares[token])
        sound = bool((diagonal <= rounding * squares[token]).all())
        for start in range(0, inputs, step):
            rows = slice(start, start + step)
            right, below = one[rows, start:], one[start:, rows].T  # [R, K - start], of both triangles
            if not (np.isfinite(right).all() and np.isfinite(below).all()):
                raise ValueError(f"{name}: a statistic is NaN or infinite")
            most = norms[rows, None] * norms[None, start:]  # by Cauchy and Schwarz
            sound &= bool((np.abs(right - below) <= rounding * most).all())
            most *= 1 + rounding
            sound &= bool((np.abs(right) <= most).all() and (np.abs(below) <= most).all())
        if not sound:
            raise ValueError(f"{name}: gram contradicts squares")
