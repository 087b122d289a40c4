"""The TensorRT-RTX library, imported lazily, and its options."""

from __future__ import annotations

from typing import Any

from engines.backends.contract import Availability, Runtime
from engines.backends.engine_spec import Option
from graphs.base.errors import UgsepError, nearest

NAME = "tensorrt-rtx"
RUNTIME = Runtime("tensorrt_rtx", "tensorrt-rtx-cu13", on_gpu=True)


#: ``compute_capabilities``: GPU generations in one engine. ``twin``: also compile the FP16 twin of a w8a16 graph
#: (sizes are compared, nothing is kept). ``specialization``: when kernels for a request's shapes are compiled while
#: serving: lazy (in the background, generic ones until then), eager (before the first answer), none.
OPTIONS: dict[str, Option] = {
    "compute_capabilities": "8.0,8.6,8.9,12.0",
    "twin": True,
    "specialization": "lazy",
}


INSTALL = "pip install 'ugsep[tensorrt-rtx]'"


def specialization(trt: Any, option: str) -> Any:
    """Return the library's strategy for an option.

    Raises:
        UgsepError: none of lazy, eager, none.
    """
    strategies = trt.DynamicShapesKernelSpecializationStrategy
    known = {"lazy": strategies.LAZY, "eager": strategies.EAGER, "none": strategies.NONE}
    if option not in known:
        raise UgsepError(f"backend 'tensorrt-rtx': specialization '{option}'{nearest(option, known)}")
    return known[option]


def import_tensorrt_rtx() -> Any:
    """Return the tensorrt_rtx module.

    Raises:
        UgsepError: it is not installed.
    """
    try:
        import tensorrt_rtx as trt
    except ImportError as error:
        raise UgsepError(f"backend 'tensorrt-rtx' needs tensorrt-rtx ({error}); {INSTALL}") from error
    return trt


def capability_names(trt: Any) -> dict[str, Any]:
    """Return ``{"8.9": ComputeCapability.SM89, ...}`` for what the installed library can compile for."""
    members = {name: getattr(trt.ComputeCapability, name) for name in dir(trt.ComputeCapability)}
    digits = {name[2:]: value for name, value in members.items() if name.startswith("SM")}
    return {f"{d[:-1]}.{d[-1]}": digits[d] for d in sorted(digits, key=int)}


ONNX_VARIANT = {"w8a16": "w8a16", "fp16": "fp32"}


def probe() -> Availability:
    """Check for tensorrt-rtx, and for a GPU it can run on."""
    try:
        trt = import_tensorrt_rtx()
    except UgsepError as error:
        return Availability(False, False, str(error))
    from engines.backends.trt.gpu import gpu

    capability, reason = gpu()
    names = capability_names(trt)
    if capability is None:
        return Availability(True, False, f"tensorrt-rtx {trt.__version__} compiles here but cannot run: {reason}")
    if capability not in names:
        return Availability(
            True,
            False,
            f"tensorrt-rtx {trt.__version__} compiles here but does not support this GPU, compute capability "
            f"{capability}; it supports {', '.join(names)}",
        )
    return Availability(True, True, f"tensorrt-rtx {trt.__version__}, compute capability {capability}")


def target() -> str:
    """Return ``any machine``: the compute capabilities are options, and compiling needs no GPU."""
    return "any machine"
