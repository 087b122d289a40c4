"""Load an engine on TensorRT-RTX; imports no ONNX tooling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engines.backends.built_engine import BuiltEngine
from engines.backends.contract import Runner
from engines.backends.tensorrt_rtx.library import NAME, OPTIONS, import_tensorrt_rtx, specialization
from engines.backends.trt.load import load_plan


def load(
    directory: Path, built: BuiltEngine, threads: int | None = None, runtime_cache: Path | None = None
) -> Runner:
    """Load an engine on this machine's GPU.

    ``runtime_cache``: a file for the kernels the library compiles while serving, read now and written when the
    runner is closed, so that the next process need not compile them again; never inside the bundle.

    Raises:
        UgsepError: tensorrt-rtx, a driver or a GPU of a capability the engine has is missing; both are named.
    """
    trt = import_tensorrt_rtx()
    caches: list[Any] = []

    def make_context(engine: Any) -> Any:
        config = engine.create_runtime_config()
        config.dynamic_shapes_kernel_specialization_strategy = specialization(
            trt, str(built.session.get("specialization", OPTIONS["specialization"]))
        )
        if not caches:  # one for all profiles
            caches.append(config.create_runtime_cache())
            if runtime_cache is not None and runtime_cache.is_file():
                caches[0].deserialize(runtime_cache.read_bytes())  # one of another version is ignored by the library
        config.set_runtime_cache(caches[0])
        return engine.create_execution_context(config)

    def keep_kernels() -> None:
        if runtime_cache is not None and caches:
            runtime_cache.parent.mkdir(parents=True, exist_ok=True)
            part = runtime_cache.with_name(f".{runtime_cache.name}.part")
            part.write_bytes(memoryview(caches[0].serialize()))
            part.replace(runtime_cache)

    return load_plan(trt, NAME, directory, built, make_context, keep_kernels)
