"""What is known of every model: one JSON file each while measuring, one for all in docs/."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graphs.base import config
from graphs.base.errors import UgsepError


@dataclass(frozen=True)
class Gate:
    """One check of a build: its value, None for one that is not a number, and its bound."""

    name: str
    value: float | None
    bound: float
    relation: str
    passed: bool


@dataclass(frozen=True)
class Build:
    """How ``ugsep build`` ended: its exit status, every gate, and the error if it made no report."""

    status: int
    gates: tuple[Gate, ...] = ()
    reason: str = ""
    speedup: float = 0.0
    limit: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True)
class Result:
    """One model on the test bed.

    ``outcome`` is ``split``, or where it ended: ``refused`` by the splitter, ``not exported``, ``wrong`` if a
    difference was over its bound, ``failed`` if the package could not make it or the process died. ``float64`` and
    ``float32`` are the largest |split - whole| relative to max(1, |score|), float64 None if the model itself cannot
    compute in it; ``onnx`` the same of ONNX Runtime's split against PyTorch's whole model. Times are medians in
    milliseconds at ``candidates`` rows, interleaved, one thread; ``share``, ``limit`` and ``state_bytes`` as in
    report.json.
    """

    package: str
    model: str
    outcome: str
    reason: str = ""
    user: tuple[str, ...] = ()
    item: tuple[str, ...] = ()
    parameters: int = 0
    share: float = 0.0
    limit: float = 0.0
    state_bytes: int = 0
    hoisted: int = 0
    float64: float | None = None
    float32: float | None = None
    onnx: float | None = None
    candidates: int = 0
    rounds: int = 0
    whole_ms: float = 0.0
    user_ms: float = 0.0
    item_ms: float = 0.0
    seconds: float = 0.0
    build: Build | None = None

    @property
    def speedup(self) -> float:
        """The measured speed-up of a request whose user is not cached."""
        apart = self.user_ms + self.item_ms
        return self.whole_ms / apart if apart else 0.0


def save(folder: Path, name: str, result: Result) -> None:
    """Write one model's result into a folder, which is made if missing."""
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / f"{name}.json", dataclasses.asdict(result))


def load(folder: Path, name: str) -> Result | None:
    """Return one model's result, or None if there is none yet."""
    file = folder / f"{name}.json"
    return config.parse(Result, json.loads(file.read_text()), str(file)) if file.is_file() else None


def save_all(file: Path, machine: Mapping[str, str], results: Iterable[Result]) -> None:
    """Write all results, and what they were measured with, into one file."""
    _write(file, {"machine": dict(machine), "results": [dataclasses.asdict(r) for r in results]})


def load_all(file: Path) -> tuple[dict[str, str], list[Result]]:
    """Return what ``save_all`` wrote.

    Raises:
        UgsepError: no such file, or not of this format.
    """
    if not file.is_file():
        raise UgsepError(f"{file}: no results; run: python -m benchmarks.model_zoo run")
    values = json.loads(file.read_text())
    return values["machine"], [config.parse(Result, value, str(file)) for value in values["results"]]


def _write(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", encoding="utf-8")
