"""Every request is accounted for, whatever the server does with it."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path

import numpy as np
import pytest

from benchmarks.serving.load.arrivals import poisson, uniform_picks
from benchmarks.serving.load.http_load import Address, closed_loop, open_loop
from benchmarks.serving.load.pool import Pool, bundle_version, make_pool
from benchmarks.serving.load.tally import Tally
from tests.benchmarks.serving.small_server import Behave, small_server


@pytest.fixture(scope="module")
def pool(built_bundle: Path) -> Pool:
    return make_pool([built_bundle], users=4, candidates=5)


def loaded(pool: Pool, built_bundle: Path, behave: Behave, requests: int = 60, grace: float = 5.0) -> Tally:
    async def main() -> Tally:
        async with small_server(pool, bundle_version(built_bundle), behave) as address:
            arrivals = np.linspace(0, 0.1, requests)
            picks = uniform_picks(pool, requests)
            return await open_loop(address, pool, picks, arrivals, connections=8, grace=grace)

    return asyncio.run(main())


def test_right_answers_are_exact(pool: Pool, built_bundle: Path) -> None:
    tally = loaded(pool, built_bundle, lambda n: "answer")
    assert (tally.planned, tally.exact, tally.wrong, tally.lost) == (60, 60, 0, 0)
    summary = tally.summary()
    assert summary["codes"] == {"200": 60}
    assert summary["versions"] == {bundle_version(built_bundle): 60}
    assert 0 < summary["ms"]["p50"] <= summary["ms"]["p99"] <= summary["ms"]["max"]


def test_wrong_scores_are_counted(pool: Pool, built_bundle: Path) -> None:
    tally = loaded(pool, built_bundle, lambda n: "wrong" if n % 10 == 3 else "answer")
    assert (tally.exact, tally.wrong, tally.lost) == (54, 6, 0)
    assert "off by" in tally.messages[0]


def test_a_version_without_reference_is_wrong(pool: Pool, built_bundle: Path) -> None:
    renamed = [dataclasses.replace(e, expected={"other": next(iter(e.expected.values()))}) for e in pool.entries]
    other = Pool(tuple(renamed), pool.tolerance)

    async def main() -> Tally:
        async with small_server(pool, bundle_version(built_bundle), lambda n: "answer") as address:
            return await open_loop(address, other, [0, 1], np.zeros(2), grace=5)

    assert asyncio.run(main()).wrong == 2


def test_refusals_dropped_and_unanswered_requests_are_told_apart(pool: Pool, built_bundle: Path) -> None:
    what = ["answer", "refuse", "drop", "bare refusal"]
    tally = loaded(pool, built_bundle, lambda n: what[n % 4] if n < 48 else "silent", grace=0.5)
    assert tally.planned == 60 == len(tally.codes)
    assert tally.count(200) == tally.exact == 12
    assert (tally.count(429), tally.no_retry_after) == (24, 12)
    assert tally.lost == 24  # 12 dropped, 12 never answered
    assert tally.summary()["refused_ms"]["count"] == 24


def test_a_server_that_is_not_there_loses_every_request(pool: Pool) -> None:
    tally = asyncio.run(open_loop(Address("127.0.0.1", 1), pool, [0, 1, 2], np.zeros(3), grace=1))
    assert (tally.planned, tally.lost) == (3, 3)


def test_latency_counts_from_when_a_request_was_due(pool: Pool, built_bundle: Path) -> None:
    """One connection and a server of 10 ms: of 20 requests due at once, the last waits for the others."""

    async def main() -> Tally:
        async with small_server(pool, bundle_version(built_bundle), lambda n: "answer", seconds=0.01) as address:
            return await open_loop(address, pool, [0] * 20, np.zeros(20), connections=1)

    ms = asyncio.run(main()).milliseconds()
    assert ms.max() >= 190
    assert ms.min() < 100


def test_a_closed_loop_keeps_its_connections_busy(pool: Pool, built_bundle: Path) -> None:
    async def main() -> Tally:
        async with small_server(pool, bundle_version(built_bundle), lambda n: "answer", seconds=0.01) as address:
            return await closed_loop(address, pool, uniform_picks(pool, 50), 0.5, connections=4)

    tally = asyncio.run(main())
    assert tally.lost == 0
    assert 40 <= tally.exact == tally.planned <= 4 * 55  # four at a time, each 10 ms or more


def test_poisson_arrivals_have_their_rate() -> None:
    times = poisson(1000, 10)
    assert times.min() >= 0
    assert times.max() <= 10
    assert abs(len(times) - 10_000) < 5 * 100  # five standard deviations
    gaps = np.diff(times)
    assert abs(gaps.std() / gaps.mean() - 1) < 0.05  # exponential gaps


def test_a_run_does_not_format_its_requests(pool: Pool) -> None:
    """asyncio formats the result of what it ran, which took minutes for a pool of 512 users."""
    assert len(repr(Tally(pool))) + len(repr(pool)) + len(repr(pool.entries[0])) < 500
