"""The OpenVINO library: imported lazily, and the precision it actually computes in."""

from __future__ import annotations

from functools import cache
from typing import Any

from engines.backends.contract import Availability, Runtime
from engines.backends.engine_spec import Option
from engines.backends.host import host_isa
from graphs.base.errors import UgsepError

NAME = "openvino"
RUNTIME = Runtime("openvino", "openvino")


INSTALL = "pip install 'ugsep[openvino]'"


def import_openvino() -> Any:
    """Return the openvino module.

    Raises:
        UgsepError: it is not installed.
    """
    try:
        import openvino as ov
    except ImportError as error:
        raise UgsepError(f"backend 'openvino' needs openvino; {INSTALL}") from error
    return ov


@cache
def core() -> Any:
    """Return the process's only OpenVINO core, which lives as long as the process does.

    The CPU plugin gives the thread that loads it another stack for signal handlers, and unmaps that stack when the
    last core or model that holds the plugin is released, whichever thread does it. Were that another one, as in a
    server that replaces its bundle, the next signal to the first would end the process with a segmentation fault.

    Raises:
        UgsepError: openvino is not installed.
    """
    return import_openvino().Core()


#: OpenVINO's name of the precision it computes in, for each of ours.
RUNS_AS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "w8a32": "float32", "w8a8-dynamic": "float32"}


def runs_as(compiled: Any) -> str:
    """Return the precision the plugin chose, which may differ from the hint."""
    name = str(compiled.get_property("INFERENCE_PRECISION_HINT").to_string())
    return {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}.get(name, name)


ONNX_VARIANT = {"fp32": "fp32", "bf16": "fp32", "fp16": "fp32", "w8a32": "w8a32", "w8a8-dynamic": "w8a32"}


#: ``threads``: inference threads. ``streams``: parallel requests the CPU is divided for; 1 is best for latency.
OPTIONS: dict[str, Option] = {"threads": 1, "streams": 1}


def probe() -> Availability:
    """Check for openvino, and report what its CPU plugin can compute in."""
    try:
        ov = import_openvino()
    except UgsepError as error:
        return Availability(False, False, str(error))
    capabilities = ", ".join(core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
    return Availability(True, True, f"openvino {ov.__version__}, CPU ({capabilities})")


def target() -> str:
    """Return this CPU's microarchitecture: which precisions there are, and what was read back, depends on it."""
    return host_isa()
