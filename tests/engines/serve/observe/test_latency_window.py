from __future__ import annotations

import time
from pathlib import Path

import pytest

from engines.serve.core.job import Answer, StageSeconds
from engines.serve.core.outcome import Outcome
from engines.serve.core.served_bundle import ServedBundle
from engines.serve.observe import latency_window
from engines.serve.observe.latency_window import LatencyWindow
from tests.engines.serve.core.jobs import SimpleJob, load, request


@pytest.fixture(scope="module")
def served(built_bundle: Path) -> ServedBundle:
    return load(built_bundle)


class Clock:
    """The window's clock: it stands still until it is moved."""

    def __init__(self, at: float) -> None:
        self.at = at

    def time(self) -> float:
        return self.at


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock(1_000_000.5)
    monkeypatch.setattr(latency_window, "time", made)
    return made


def done(served: ServedBundle, seconds: float, misses: int = 0, code: int = 200) -> Outcome:
    now = time.monotonic()
    job = SimpleJob(request(), arrived=now - seconds)
    stages = StageSeconds(seconds / 4, seconds / 2 if misses else 0.0, seconds / 4)
    result = Answer(served, {}, 1 - misses, misses, 1, stages) if code == 200 else ValueError()
    return Outcome(job, job.request, result, served, 5, code, now, 0.0, now)


def test_an_idle_window_has_no_latencies(clock: Clock) -> None:
    found = LatencyWindow().traffic()
    assert (found["requests"], found["per_second"], found["p50_ms"]) == (0, 0, None)
    assert found["stages"]["user"] == {"p50_ms": None, "p99_ms": None}
    assert (found["codes"], found["history"]) == ({}, [])


def test_percentiles_are_within_two_hundredths(clock: Clock, served: ServedBundle) -> None:
    window = LatencyWindow()
    for ms in range(1, 101):
        window.record(done(served, ms / 1e3, misses=ms % 2))
    clock.at += 1
    found = window.traffic()
    assert found["p50_ms"] == pytest.approx(50, rel=0.02)
    assert found["p99_ms"] == pytest.approx(99, rel=0.02)
    assert found["stages"]["queue"]["p50_ms"] == pytest.approx(12.5, rel=0.02)
    assert found["stages"]["user"]["p50_ms"] == pytest.approx(24.5, rel=0.02), "of the misses only"
    assert found["history"][-1]["hit_ratio"] == 0.5


def test_rates_codes_and_history_cover_the_last_minutes(clock: Clock, served: ServedBundle) -> None:
    window = LatencyWindow()
    start = clock.at
    for second in range(300):
        clock.at = start + second
        for _ in range(2):
            window.record(done(served, 0.001))
        if second % 10 == 0:
            window.refused(429)
    clock.at = start + 300
    found = window.traffic()
    assert (found["requests"], found["window_seconds"]) == (630, 60)
    assert found["codes"] == {"200": 120, "429": 6}
    assert found["per_second"] == pytest.approx(2.1)
    assert [p["at"] for p in found["history"]] == list(range(int(start) + 180, int(start) + 300))
    clock.at = start + 400
    quiet = window.traffic()
    assert quiet["per_second"] == 0
    nothing = {"per_second": 0, "p50_ms": None, "p99_ms": None, "hit_ratio": None}
    assert quiet["history"][-1] == {"at": int(start) + 399, **nothing}


def test_the_first_minute_is_measured_against_its_own_length(clock: Clock, served: ServedBundle) -> None:
    window = LatencyWindow()
    for _ in range(3):
        for _ in range(10):
            window.record(done(served, 0.001))
        clock.at += 1
    found = window.traffic()
    assert (found["window_seconds"], found["per_second"]) == (3, 10)


def test_a_clock_that_is_set_back_breaks_nothing(clock: Clock, served: ServedBundle) -> None:
    window = LatencyWindow()
    window.record(done(served, 0.001))
    clock.at -= 3600
    window.record(done(served, 0.0))
    assert window.traffic()["requests"] == 2
    clock.at += 3601
    assert window.traffic()["codes"] == {"200": 2}


def test_memory_is_bounded_whatever_the_latencies(clock: Clock, served: ServedBundle) -> None:
    window = LatencyWindow()
    for step in range(20_000):
        window.record(done(served, 1e-7 * 1.001**step))
    (second,) = window._seconds
    assert len(second.stages["total"]) < 1600


def test_failures_count_as_requests_but_have_no_latency(clock: Clock, served: ServedBundle) -> None:
    window = LatencyWindow()
    window.record(done(served, 0.5, code=500))
    clock.at += 1
    found = window.traffic()
    assert (found["codes"], found["p50_ms"]) == ({"500": 1}, None)
