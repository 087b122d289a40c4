"""Calibrations on disk: a JSON file and the statistics as safetensors, written and read as a pair."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import save_file

from graphs.base.errors import UgsepError
from quant.arrays import Doubles
from quant.calibration.statistics import Calibration, InputStatistics, Samples, SideStatistics

FORMAT = 2
NAME = "calibration"


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
        if not path.is_file():
            raise UgsepError(f"'{path}' does not exist; run quant calibrate")
    try:
        document = json.loads(text.read_text())
        if document["format"] != FORMAT:
            raise UgsepError(f"'{text}' has format {document['format']}, not {FORMAT}; calibrate again")
        arrays, token = _mapped(data)
        if token != document["token"]:
            raise UgsepError(f"'{text}' and '{data.name}' are of different runs; calibrate again")
        sides = {name: _side(name, document["sides"][name], arrays) for name in ("user", "item")}
        samples = tuple(Samples(**s) for s in document["samples"])
    except (ValueError, KeyError, TypeError) as error:
        raise UgsepError(f"'{text}' or '{data.name}' is damaged ({error}); calibrate again") from error
    return Calibration(sides["user"], sides["item"], samples)


def _mapped(path: Path) -> tuple[dict[str, Doubles], str]:
    """Return the float64 arrays of a safetensors file, memory-mapped (Gram matrices are large), and its token."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    token = str(header.pop("__metadata__")["token"])
    need = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if path.stat().st_size != need:
        raise ValueError(f"{path.stat().st_size} bytes instead of {need}")
    arrays: dict[str, Doubles] = {}
    for name, entry in header.items():
        if entry["dtype"] != "F64":
            raise ValueError(f"'{name}' is {entry['dtype']}, not F64")
        start, shape = 8 + length + entry["data_offsets"][0], tuple(entry["shape"])
        arrays[name] = np.memmap(path, np.float64, "r", start, shape) if 0 not in shape else np.empty(shape)
    return arrays, token


def _side(name: str, document: dict[str, Any], arrays: dict[str, Doubles]) -> SideStatistics:
    tensors = {
        key: InputStatistics(
            count,
            arrays[f"{name}/{key}/squares"],
            arrays[f"{name}/{key}/sums"],
            arrays[f"{name}/{key}/low"],
            arrays[f"{name}/{key}/high"],
            arrays.get(f"{name}/{key}/gram"),
        )
        for key, count in document["counts"].items()
    }
    feeds = {weight: tuple(keys) for weight, keys in document["feeds"].items()}
    return SideStatistics(document["graph_sha256"], tensors, feeds)
