"""Load an engine on TensorRT; imports no ONNX tooling."""

from __future__ import annotations

from pathlib import Path

from engines.backends.built_engine import BuiltEngine
from engines.backends.contract import Runner
from engines.backends.tensorrt.library import NAME, import_tensorrt
from engines.backends.trt.load import load_plan


def load(
    directory: Path, built: BuiltEngine, threads: int | None = None, runtime_cache: Path | None = None
) -> Runner:
    """Load an engine on this machine's GPU.

    Raises:
        UgsepError: the libraries, a driver or a GPU that the engine was built for are missing; both are named.
    """
    return load_plan(import_tensorrt(), NAME, directory, built)
