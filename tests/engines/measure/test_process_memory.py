"""Resident and peak memory, against an allocation of known size."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from engines.measure.process_memory import peak_bytes, resident_bytes

SIZE = 64 << 20
SLACK = 8 << 20  # what the interpreter may allocate or release meanwhile


def test_an_allocation_shows_in_resident_memory() -> None:
    before = resident_bytes()
    held = np.ones(SIZE, np.uint8)
    assert resident_bytes() - before == pytest.approx(held.nbytes, abs=SLACK)


def test_a_process_that_has_ended_holds_nothing() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    assert resident_bytes(process.pid) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_the_peak_stays_and_is_not_the_parent_s() -> None:
    held = np.ones(SIZE, np.uint8)  # in this process, not in the child's peak
    code = (
        "from engines.measure.process_memory import peak_bytes, resident_bytes\n"
        f"block = bytearray(b'1') * {SIZE}\n"
        "del block\n"
        "print(resident_bytes(), peak_bytes())"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    resident, peak = map(int, printed.split())
    assert SIZE - SLACK <= peak - resident <= 2 * SIZE
    assert held.nbytes == SIZE
    assert (peak_bytes() or 0) > 0
