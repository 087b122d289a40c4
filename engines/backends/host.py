"""The CPU of this machine."""

from __future__ import annotations


def host_isa() -> str:
    """Return the microarchitecture of this machine, as archspec names it (``zen4``, ``icelake``)."""
    import archspec.cpu

    return str(archspec.cpu.host().name)
