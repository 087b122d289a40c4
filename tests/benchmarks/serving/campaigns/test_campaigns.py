"""The short form of every campaign: real servers as processes, on the tiny bundle; bounds on times do not apply."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from benchmarks.serving.campaigns.batching import batching
from benchmarks.serving.campaigns.bench import Bench, Result, load_results, save
from benchmarks.serving.campaigns.overhead import overhead
from benchmarks.serving.campaigns.overload import overload
from benchmarks.serving.campaigns.replicas import affinity, kill, rolling
from benchmarks.serving.campaigns.soak import soak
from benchmarks.serving.campaigns.swaps import CORRUPTIONS, swaps
from engines.build.pipeline import build
from tests import tiny

pytestmark = pytest.mark.slow  # CI has a step of its own for it
needs_haproxy = pytest.mark.skipif(shutil.which("haproxy") is None, reason="haproxy is not installed")


@pytest.fixture
def bench(built_bundle: Path, tmp_path: Path) -> Bench:
    return Bench(built_bundle, tmp_path, short=True, rivals=tmp_path / "none")


def kept(found: Result) -> Result:
    assert found.checks
    assert [str(check) for check in found.checks if not check.passed] == [], json.dumps(found.figures, default=str)
    return found


def test_every_way_to_ask_gives_the_same_scores(bench: Bench) -> None:
    found = kept(overhead(bench))
    servers = {f"{server}, {kind}" for server in ("ugsep serve", "floor") for kind in ("HTTP", "gRPC")}
    assert set(found.figures["contenders"]) == {"Ranker.score", *servers}
    assert all(one["exact"] > 0 for one in found.figures["contenders"].values())
    assert set(found.figures["left_out"]) == {"triton", "kserve"}


def test_small_requests_share_calls(bench: Bench) -> None:
    figures = kept(batching(bench)).figures
    assert figures["per_second"]["batched"] > 0
    assert figures["users_per_call"]["separate"] == 1.0


def test_overload_is_refused_and_loses_nothing(bench: Bench) -> None:
    run = kept(overload(bench)).figures["run"]
    assert set(run["codes"]) == {"200", "429"}


@needs_haproxy
def test_a_killed_replica_loses_no_request(bench: Bench) -> None:
    found = kept(kill(bench)).figures
    assert "killed replica 1" in found["events"][0]
    assert found["http"]["exact"] > 50


@needs_haproxy
def test_a_rolling_restart_loses_no_request(bench: Bench) -> None:
    found = kept(rolling(bench)).figures
    assert [event.split(": ")[1] for event in found["events"]] == [
        "replica 1 ended with status 0",
        "replica 2 ended with status 0",
    ]


@needs_haproxy
def test_users_stay_with_their_replica(bench: Bench) -> None:
    kept(affinity(bench))


def test_a_corrupt_bundle_never_serves(bench: Bench, tiny_sources, tmp_path: Path) -> None:
    other = tmp_path / "other"
    build("tiny", tiny.RECIPE, tiny.sources(tmp_path, seed=7), other)
    found = kept(swaps(bench, other)).figures
    assert found["refusals"][0]["damage"] == CORRUPTIONS[0].__name__


def test_mixed_load_for_a_while(bench: Bench) -> None:
    found = kept(soak(bench))
    assert {"http", "grpc"} <= set(found.figures)
    save(bench, found)
    assert load_results(bench.work) == {"soak": found} or load_results(bench.work)["soak"].checks == found.checks
