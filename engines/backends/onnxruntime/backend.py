"""The backend onnxruntime: ONNX Runtime on CPUs."""

from __future__ import annotations

from pathlib import Path

from engines.backends.built_engine import BuiltEngine
from engines.backends.contract import Progress, Runner
from engines.backends.engine_spec import BuildSpec
from engines.backends.onnxruntime.session import NAME, ONNX_VARIANT, OPTIONS, probe, target

__all__ = ["NAME", "ONNX_VARIANT", "OPTIONS", "build", "load", "probe", "target"]


def build(spec: BuildSpec, out_dir: Path, progress: Progress) -> BuiltEngine:
    """Build an engine; see ``engines.backends.onnxruntime.build``, which imports the ONNX tooling."""
    from engines.backends.onnxruntime.build import build as build_engine

    return build_engine(spec, out_dir, progress)


def load(
    directory: Path, built: BuiltEngine, threads: int | None = None, runtime_cache: Path | None = None
) -> Runner:
    """Load a built engine; see ``engines.backends.onnxruntime.runner``."""
    from engines.backends.onnxruntime.runner import load as load_engine

    return load_engine(directory, built, threads, runtime_cache)
