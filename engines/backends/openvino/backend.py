"""The backend openvino: OpenVINO on CPUs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from engines.backends.built_engine import BuiltEngine
from engines.backends.contract import Notify, Runner
from engines.backends.engine_spec import BuildSpec
from engines.backends.openvino.library import NAME, ONNX_VARIANT, OPTIONS, RUNTIME, probe, target

if TYPE_CHECKING:
    from export.lowering import LoweredGraph

__all__ = ["NAME", "ONNX_VARIANT", "OPTIONS", "RUNTIME", "compile", "load", "lower", "probe", "target"]


def lower(spec: BuildSpec, folder: Path, progress: Notify) -> LoweredGraph:
    """Lower a graph; see ``engines.backends.openvino.build``, which imports the ONNX tooling."""
    from engines.backends.openvino import build

    return build.lower(spec, folder, progress)


def compile(spec: BuildSpec, lowered: LoweredGraph, out_dir: Path, progress: Notify) -> BuiltEngine:
    """Compile a lowered graph; see ``engines.backends.openvino.build``."""
    from engines.backends.openvino import build

    return build.compile(spec, lowered, out_dir, progress)


def load(
    directory: Path, built: BuiltEngine, threads: int | None = None, runtime_cache: Path | None = None
) -> Runner:
    """Load a built engine; see ``engines.backends.openvino.runner``."""
    from engines.backends.openvino.runner import load as load_engine

    return load_engine(directory, built, threads, runtime_cache)
