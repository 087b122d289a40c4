"""The CPU of this machine, and the GPUs its NVIDIA driver knows."""

from __future__ import annotations

import ctypes


def host_isa() -> str:
    """Return the microarchitecture of this machine, as archspec names it (``zen4``, ``icelake``)."""
    import archspec.cpu

    return str(archspec.cpu.host().name)


def gpu_name(index: int) -> str | None:
    """Return the name of a GPU as the NVIDIA driver reports it; None if there is no driver or no such GPU."""
    found = _device(index)
    if found is None:
        return None
    driver, device = found
    name = ctypes.create_string_buffer(256)
    driver.cuDeviceGetName(name, len(name), device)
    return name.value.decode()


def gpu_capability(index: int) -> str | None:
    """Return the compute capability of a GPU, ``8.9``; None if there is no driver or no such GPU."""
    found = _device(index)
    if found is None:
        return None
    driver, device = found
    parts = [ctypes.c_int(), ctypes.c_int()]
    for attribute, part in zip((75, 76), parts, strict=True):  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
        driver.cuDeviceGetAttribute(ctypes.byref(part), attribute, device)
    return ".".join(str(part.value) for part in parts)


def _device(index: int) -> tuple[ctypes.CDLL, ctypes.c_int] | None:
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device = ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), index):
        return None
    return driver, device
