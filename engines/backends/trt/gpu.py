"""The GPU of this machine, and which engines it runs."""

from __future__ import annotations

from engines.backends.host import gpu_name


def gpu() -> tuple[str | None, str]:
    """Return this machine's compute capability, or None and the reason why there is no usable GPU."""
    if gpu_name(0) is None:  # asked first: importing PyTorch takes seconds
        return None, "no NVIDIA driver or GPU found"
    try:
        import torch
    except ImportError as error:
        return None, f"PyTorch, which holds an engine's device memory, is not installed ({error}); pip install torch"
    if torch.version.cuda is None:
        return None, "PyTorch is a CPU build; install one for CUDA on a machine with an NVIDIA GPU"
    if not torch.cuda.is_available():
        return None, "no NVIDIA driver or GPU found"
    major, minor = torch.cuda.get_device_capability()
    return f"{major}.{minor}", ""


def accepts(wanted: str, capability: str) -> bool:
    """Check whether a GPU of ``capability`` runs an engine for ``wanted``, a list like ``8.6,8.9`` or ``8.0+``."""
    here = tuple(map(int, capability.split(".")))
    for entry in filter(None, wanted.split(",")):
        least = tuple(map(int, entry.rstrip("+").split(".")))
        if here == least or (entry.endswith("+") and here > least):
            return True
    return False
