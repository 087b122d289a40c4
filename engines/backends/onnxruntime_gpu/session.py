"""Sessions of ONNX Runtime on a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from engines.backends.contract import Availability, Runtime
from engines.backends.engine_spec import Option
from engines.backends.host import gpu_name
from engines.backends.onnxruntime.session import FOLD_INT8
from graphs.base.errors import UgsepError, first_line, nearest

CUDA, TENSORRT = "CUDAExecutionProvider", "TensorrtExecutionProvider"
PROVIDERS = {"cuda": CUDA, "tensorrt": TENSORRT}


def session_settings(options: Mapping[str, Option]) -> dict[str, Option]:
    """Return the settings pinned in the manifest: int8 constants fold to float once, when the session starts."""
    return {
        "graph_optimization_level": "all",
        FOLD_INT8: "1",
        "provider": options["provider"],
        "device": options["device"],
        "use_tf32": "1" if options["tf32"] else "0",
    }


def provider_name(option: str) -> str:
    """Return ONNX Runtime's name of a provider.

    Raises:
        UgsepError: neither cuda nor tensorrt.
    """
    if option not in PROVIDERS:
        raise UgsepError(f"backend '{NAME}': provider '{option}'{nearest(option, PROVIDERS)}")
    return PROVIDERS[option]


def providers(
    session: Mapping[str, Option], tensorrt: Mapping[str, str] | None = None
) -> list[tuple[str, Mapping[str, str]]]:
    """Return the execution providers of a session, with their options, in order of preference."""
    device = {"device_id": str(session["device"])}
    cuda = (CUDA, {**device, "use_tf32": str(session["use_tf32"])})
    if session["provider"] == "cuda":
        return [cuda]
    return [(TENSORRT, {**device, **(tensorrt or {})}), cuda]


def check_provider(session: Any, name: str) -> None:
    """Refuse a session that fell back to the CPU: ONNX Runtime only logs a warning."""
    if session.get_providers()[0] != name:
        raise UgsepError(
            f"onnxruntime runs the graph on {session.get_providers()[0]} instead of {name}; its CUDA or TensorRT "
            "libraries do not load, see its requirements page"
        )


NAME = "onnxruntime-gpu"
RUNTIME = Runtime("onnxruntime", "onnxruntime-gpu", on_gpu=True)


#: ``provider``: cuda, or tensorrt, which compiles the whole graph when it is built. ``device``: index of the GPU.
#: ``tf32``: let FP32 GEMMs round their inputs to 10 bits of mantissa; off, so that fp32 means FP32.
OPTIONS: dict[str, Option] = {"provider": "cuda", "device": 0, "tf32": False}


INSTALL = "pip uninstall onnxruntime, then pip install 'ugsep[gpu]'"


def probe() -> Availability:
    """Check for onnxruntime-gpu, an NVIDIA driver and a usable GPU."""
    try:
        import onnxruntime as ort
    except ImportError as error:
        return Availability(False, False, f"{error}; {INSTALL}")
    if CUDA not in ort.get_available_providers():
        return Availability(False, False, f"onnxruntime {ort.__version__} is the CPU package; {INSTALL}")
    gpu = gpu_name(0)
    if gpu is None:
        return Availability(
            False, False, f"onnxruntime {ort.__version__} has CUDA, but no NVIDIA driver or GPU was found"
        )
    try:
        ort.OrtValue.ortvalue_from_shape_and_type([1], np.float32, "cuda", 0)
    except Exception as error:  # onnxruntime raises RuntimeError or its own classes
        return Availability(False, False, f"onnxruntime {ort.__version__} cannot use the GPU ({first_line(error)})")
    return Availability(True, True, f"onnxruntime {ort.__version__}, {gpu}")


def target() -> str:
    """Return the name of this machine's first GPU: the tensorrt provider compiles for it."""
    return gpu_name(0) or "no GPU"


ONNX_VARIANT = {"fp16": "fp32", "w8a16": "w8a16", "fp32": "fp32", "w8a32": "w8a32"}
