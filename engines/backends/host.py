"""The CPU of this machine, and the GPUs its NVIDIA driver knows."""

from __future__ import annotations

import ctypes


def host_isa() -> str:
    """Return the microarchitecture of this machine, as archspec names it (``zen4``, ``icelake``)."""
    import archspec.cpu

    return str(archspec.cpu.host().name)


def gpu_name(index: int) -> str | None:
    """Return the name of a GPU as the NVIDIA driver reports it; None if there is no driver or no such GPU."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
    if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), index):
        return None
    driver.cuDeviceGetName(name, len(name), device)
    return name.value.decode()
