"""Build one engine: lower its graph for a backend, then compile it."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from pathlib import Path

from engines.backends.built_engine import BuiltEngine
from engines.backends.contract import Backend, Progress
from engines.backends.engine_spec import BuildSpec


def build_engine(backend: Backend, spec: BuildSpec, out_dir: Path, progress: Progress) -> BuiltEngine:
    """Lower and compile an engine into ``out_dir``; its figures tell how long both took together.

    Raises:
        UgsepError: the backend cannot build here, an option is wrong, or the engine is not as its precision says.
    """
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=out_dir, prefix=".lowered-") as scratch:
        lowered = backend.lower(spec, Path(scratch), progress)
        built = backend.compile(spec, lowered, out_dir, progress)
    seconds = time.perf_counter() - started
    return dataclasses.replace(built, figures={"build_seconds": seconds, **built.figures})
