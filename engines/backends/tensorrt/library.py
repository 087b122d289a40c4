"""The TensorRT library, imported lazily."""

from __future__ import annotations

from typing import Any

from engines.backends.contract import Availability, Runtime
from engines.backends.engine_spec import Option
from engines.backends.trt.gpu import gpu
from graphs.base.errors import UgsepError

NAME = "tensorrt"
RUNTIME = Runtime("tensorrt", "tensorrt-cu13", on_gpu=True)


def import_tensorrt() -> Any:
    """Return the tensorrt module.

    Raises:
        UgsepError: it or its libraries are not installed.
    """
    try:
        import tensorrt as trt
    except (ImportError, OSError) as error:
        # The bindings install from the package index, the libraries only from the vendor's.
        raise UgsepError(
            f"backend 'tensorrt' needs TensorRT 11 and its libraries ({error}); pip install 'ugsep[tensorrt]', the "
            "libraries come from NVIDIA's own package index"
        ) from error
    return trt


ONNX_VARIANT = {"w8a16": "w8a16", "fp16": "fp32"}


#: ``optimization_level``: 0 (fast build) to 5 (fast engine). ``version_compatible``: loads in later versions.
#: ``hardware_compatible``: none (this GPU), same-capability, ampere-plus. ``refit``: weights can be replaced.
#: ``workspace_mb``: scratch memory a kernel may use while running, 0 for no limit. ``int8_plugin``: if TensorRT
#: folds int8 weights to FP16, run them in our own kernel (needs Triton to build, not to run). ``buckets``: tune
#: kernels for several request sizes instead of one; each bucket makes the engine larger, on disk and in memory.
OPTIONS: dict[str, Option] = {
    "optimization_level": 3,
    "version_compatible": False,
    "hardware_compatible": "none",
    "refit": False,
    "workspace_mb": 0,
    "int8_plugin": True,
    "buckets": True,
}


def probe() -> Availability:
    """Check for the TensorRT libraries and a GPU; both building and running need one."""
    try:
        trt = import_tensorrt()
    except UgsepError as error:
        return Availability(False, False, str(error))
    capability, reason = gpu()
    if capability is None:
        return Availability(
            False, False, f"tensorrt {trt.__version__} builds only on the GPU it builds for: {reason}"
        )
    return Availability(True, True, f"tensorrt {trt.__version__}, compute capability {capability}")


def target() -> str:
    """Return this machine's GPU, for which kernels are timed and chosen."""
    import torch

    capability, reason = gpu()
    return reason if capability is None else f"{torch.cuda.get_device_name()}, compute capability {capability}"
