"""Build one engine: lower its graph for a backend, then compile it."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from engines.backends.built_engine import BuiltEngine
from engines.backends.contract import Backend, Notify
from engines.backends.engine_spec import BuildSpec

if TYPE_CHECKING:
    from export.lowering import LoweredGraph


def build_engine(backend: Backend, spec: BuildSpec, out_dir: Path, progress: Notify) -> BuiltEngine:
    """Lower and compile an engine into ``out_dir``.

    Raises:
        UgsepError: the backend cannot build here, an option is wrong, or the engine is not as its precision says.
    """
    with tempfile.TemporaryDirectory(dir=out_dir, prefix=".lowered-") as scratch:
        started = time.perf_counter()
        lowered = backend.lower(spec, Path(scratch), progress)
        return compile_graph(backend, spec, lowered, out_dir, progress, time.perf_counter() - started)


def compile_graph(
    backend: Backend, spec: BuildSpec, lowered: LoweredGraph, out_dir: Path, progress: Notify, seconds: float
) -> BuiltEngine:
    """Compile a lowered graph; ``build_seconds`` in the engine's figures includes the ``seconds`` of lowering.

    Raises:
        UgsepError: the errors of ``Backend.compile``.
    """
    started = time.perf_counter()
    built = backend.compile(spec, lowered, out_dir, progress)
    seconds += time.perf_counter() - started
    return dataclasses.replace(built, figures={"build_seconds": seconds, **built.figures})
