"""What a machine lacks to run a built engine, found without importing a runtime."""

from __future__ import annotations

import importlib.util

from engines.backends.built_engine import BuiltEngine
from engines.backends.host import gpu_capability, gpu_name
from engines.backends.table import backend_names, find_backend
from engines.backends.trt.gpu import accepts

__all__ = ["lacking"]


def lacking(built: BuiltEngine) -> str:
    """Return why this machine cannot run an engine, or an empty string if nothing is known against it.

    ``Backend.probe`` knows more, but imports the runtime, and PyTorch with it for TensorRT: seconds and memory that a
    server does not spend on engines that it does not serve.
    """
    if built.backend not in backend_names():
        return f"backend '{built.backend}' is unknown to this version"
    runtime = find_backend(built.backend).RUNTIME
    if importlib.util.find_spec(runtime.module) is None:
        return f"package '{runtime.module}' is not installed"
    if not runtime.on_gpu:
        return ""
    gpu = gpu_name(0)
    if gpu is None:
        return "no NVIDIA driver or GPU found"
    wanted, here = built.requires.get("compute_capability", ""), gpu_capability(0)
    if wanted and here is not None and not accepts(wanted, here):
        return f"it is for compute capability {wanted}, this GPU has {here}"
    return f"it is for {built.requires['gpu']}, this GPU is {gpu}" if built.requires.get("gpu", gpu) != gpu else ""
