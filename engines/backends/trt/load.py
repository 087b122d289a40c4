"""Load a TensorRT or TensorRT-RTX plan on the GPU it was compiled for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from engines.backends.built_engine import BuiltEngine, TensorSpec
from engines.backends.checks import check_loaded
from engines.backends.trt.gpu import accepts, gpu
from engines.backends.trt.runner import TensorRTRunner, sizes
from graphs.base.errors import UgsepError, first_line

if TYPE_CHECKING:
    import tensorrt  # TensorRT-RTX has the same runtime interface


def load_plan(
    trt: Any,
    name: str,
    directory: Path,
    built: BuiltEngine,
    make_context: Callable[[Any], tensorrt.IExecutionContext] = lambda engine: engine.create_execution_context(),
    on_close: Callable[[], None] = lambda: None,
) -> TensorRTRunner:
    """Deserialize ``<side>.engine`` and prepare its buffers; ``make_context(engine)`` is called once per profile.

    Raises:
        UgsepError: no usable GPU, one of another compute capability, or a plan the library refuses.
    """
    capability, reason = gpu()
    wanted = built.requires.get("compute_capability", "")
    if capability is None:
        raise UgsepError(f"{built.side} engine needs a GPU of compute capability {wanted}: {reason}")
    if not accepts(wanted, capability):
        raise UgsepError(
            f"{built.side} engine is for compute capability {wanted}, this GPU has {capability}; build it again here"
        )
    log = _error_log(trt)
    runtime: tensorrt.Runtime = trt.Runtime(log)
    if built.session.get("version_compatible"):
        runtime.engine_host_code_allowed = True  # such a plan carries its own runtime; hashes were checked before
    path = directory / f"{built.side}.engine"
    engine: tensorrt.ICudaEngine | None = runtime.deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        said = first_line("\n".join(log.errors).strip() or "no reason given")
        raise UgsepError(
            f"{path}: {name} {trt.__version__} cannot load it ({said}), built with "
            f"{built.tools.get(name, 'unknown')}; build it again"
        )
    check_loaded(path, built, *_engine_io(trt, engine))
    return TensorRTRunner(runtime, engine, built, make_context, on_close)


def _error_log(trt: Any) -> Any:
    """Return an ``ILogger`` that collects errors and prints nothing."""

    class Log(trt.ILogger):  # type: ignore[misc]  # of either library
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: tensorrt.ILogger.Severity, message: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR:
                self.errors.append(message)

    return Log()


def _engine_io(trt: Any, engine: tensorrt.ICudaEngine) -> tuple[list[TensorSpec], list[TensorSpec]]:
    found: dict[Any, list[TensorSpec]] = {trt.TensorIOMode.INPUT: [], trt.TensorIOMode.OUTPUT: []}
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        shape = tuple(dim if dim >= 0 else "?" for dim in sizes(engine.get_tensor_shape(name)))
        dtype = np.dtype(trt.nptype(engine.get_tensor_dtype(name))).name
        found[engine.get_tensor_mode(name)].append(TensorSpec(name, dtype, shape))
    return found[trt.TensorIOMode.INPUT], found[trt.TensorIOMode.OUTPUT]
