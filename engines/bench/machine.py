"""The machine a benchmark runs on, and its load."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass

from engines.backends.host import host_isa
from engines.bundle.provenance import tool_versions


@dataclass(frozen=True)
class Machine:
    """Processor, cores, installed tools, and the load average before the run (runnable processes, 1 minute)."""

    processor: str
    isa: str
    cores: int
    system: str
    load: float
    tools: dict[str, str]

    @property
    def quiet(self) -> bool:
        """Whether the machine was nearly idle; under load, only ratios between contenders are meaningful."""
        return self.load < 0.5


def this_machine() -> Machine:
    """Describe this machine and its current load."""
    import archspec.cpu

    return Machine(
        str(archspec.cpu.brand_string() or platform.processor()),
        host_isa(),
        os.cpu_count() or 1,
        f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0,
        tool_versions(),
    )
