"""What a worker says of runs that are slow, and of runs that hang."""

import time
from pathlib import Path

import pytest

from benchmarks.reliability.fuzz.worker import Worker


def _slow(_):
    """Take twice the limit on the clock, and a fifth of it of the processor: what a busy machine makes of any run."""
    for _ in range(20):
        until = time.process_time() + 0.02  # two ticks of the clock that counts processor time
        while time.process_time() < until:
            continue
        time.sleep(0.2)


def _busy(_):
    while True:
        continue


def _asleep(_):
    time.sleep(3600)


def _ended(program, folder: Path, limit: float):
    with Worker({"it": program}, folder, limit) as worker:
        return worker.run("it", []).status


def test_a_run_that_is_slow_because_it_gets_little_of_the_processor_is_no_hang(tmp_path: Path):
    assert _ended(_slow, tmp_path, 2.0) == 0


@pytest.mark.parametrize("program", [_busy, _asleep])
def test_loops_and_waits_without_end_are_hangs(tmp_path: Path, program):
    assert _ended(program, tmp_path, 1.0) is None


def test_a_worker_goes_on_after_a_hang(tmp_path: Path):
    with Worker({"asleep": _asleep, "well": lambda _: print("well")}, tmp_path, 1.0) as worker:
        assert worker.run("asleep", []).status is None
        assert worker.run("well", []).stdout == b"well\n"
