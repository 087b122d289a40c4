"""The JSON of the status page: every key of the contract, whatever the state of the server."""

from __future__ import annotations

import dataclasses
import io
import json
import os
from pathlib import Path

import pytest

from engines.serve.core.lifecycle import Lifecycle
from engines.serve.core.model_slot import ModelSlot
from engines.serve.core.scheduler import Scheduler
from engines.serve.observe.latency_window import LatencyWindow
from engines.serve.observe.log import make_log
from engines.serve.observe.metrics import Metrics
from engines.serve.running.context import ServerContext
from engines.serve.running.status import status
from engines.serve.settings import ServeSettings
from engines.serve.swap.loading import load_bundle
from engines.serve.swap.swap_log import Swap
from tests import tiny

KEYS = {
    "model": {
        "name", "version", "backend", "precision", "synthetic", "passed", "loaded_at", "state", "path",
    },
    "cache": {
        "hits", "misses", "evictions", "users", "bytes", "limit", "hit_ratio", "state_bytes_per_user",
    },
    "queue": {"waiting", "running", "limit", "workers"},
    "batching": {"max_users", "measured"},
    "process": {"rss_bytes", "uptime_seconds", "descriptors", "threads"},
    "traffic": {"requests", "window_seconds", "per_second", "p50_ms", "p99_ms", "stages", "codes", "history"},
}  # fmt: skip


@pytest.fixture
def context(built_bundle: Path) -> ServerContext:
    slot = ModelSlot()
    scheduler = Scheduler(slot, workers=2, queue=7)
    log = make_log(io.StringIO())[0]
    settings = ServeSettings(built_bundle, name="m")
    return ServerContext(settings, slot, scheduler, Lifecycle(), Metrics(), LatencyWindow(), log)


def read(context: ServerContext) -> dict:
    """The status as a page reads it: JSON without NaN."""
    found = json.loads(json.dumps(status(context), allow_nan=False))
    assert set(found) == {*KEYS, "previous", "gates", "engines", "swaps", "misses"}
    assert {key: set(found[key]) for key in KEYS} == KEYS
    return found


def test_before_a_bundle_is_loaded_every_key_is_there(context: ServerContext) -> None:
    found = read(context)
    assert found["model"]["state"] == "loading"
    assert found["model"]["version"] == ""
    assert (found["previous"], found["gates"], found["engines"]) == (None, [], [])
    assert found["queue"] == {"waiting": 0, "running": 0, "limit": 7, "workers": 2}


def test_what_serves_and_what_it_did(context: ServerContext, built_bundle: Path) -> None:
    first = load_bundle(context.settings)
    second = dataclasses.replace(first, version="second")
    context.slot.switch(first)
    context.slot.switch(second)
    context.lifecycle.change("ready")
    context.swaps.add(Swap(5.0, first.version, "second", "serving", "", 0.12345))
    for clock in range(3):
        user = tiny.user_and_items(1)[0]
        context.misses.record("key", {**user, "age": user["age"] + clock})
    before = second.ranker.cache_info()
    second.ranker.score(*tiny.user_and_items(3))
    second.ranker.score(*tiny.user_and_items(3))
    found = read(context)
    report = json.loads((built_bundle / "report.json").read_text())
    assert found["model"]["name"] == "m"
    assert found["model"]["version"] == "second"
    assert (found["model"]["state"], found["model"]["passed"]) == ("ready", True)
    assert (found["model"]["backend"], found["model"]["precision"]) == (report["backend"], report["precision"])
    assert found["previous"]["version"] == first.version
    assert found["gates"] == [
        {key: gate[key] for key in ("name", "value", "bound", "relation", "passed")} for gate in report["targets"]
    ]
    assert {"<=", ">="} == {gate["relation"] for gate in found["gates"]}
    assert [engine["side"] for engine in found["engines"] if engine["chosen"]] == ["user", "item"]
    assert found["cache"]["hits"] - before.hits == 1
    assert found["cache"]["state_bytes_per_user"] == report["split"]["state_bytes_per_user"]
    assert found["batching"]["max_users"] == second.ranker.max_users
    assert len(found["batching"]["measured"]) == len(second.manifest.batching)
    assert found["swaps"] == [
        {"at": 5.0, "from": first.version, "to": "second", "outcome": "serving", "reason": "", "seconds": 0.123}
    ]
    assert found["misses"] == [{"feature": "age", "share": 1.0, "count": 2}]
    assert found["process"]["descriptors"] > 2
    assert found["process"]["rss_bytes"] > 1 << 20
    assert found["process"]["threads"] >= 1
    context.slot.close(10)


def test_an_engine_that_cannot_run_here_is_not_called_available(context: ServerContext) -> None:
    loaded = load_bundle(context.settings)
    first = loaded.manifest.engines[0]
    foreign = dataclasses.replace(
        first, directory="engines/other", built=dataclasses.replace(first.built, backend="tensorrt-next")
    )
    spare = dataclasses.replace(first, directory="engines/spare")
    manifest = dataclasses.replace(loaded.manifest, engines=(*loaded.manifest.engines, foreign, spare))
    context.slot.switch(dataclasses.replace(loaded, manifest=manifest))
    found = read(context)["engines"]
    assert found[-2]["cannot_run"] == "backend 'tensorrt-next' is unknown to this version"
    assert [e["cannot_run"] for e in found if e is not found[-2]] == [""] * (len(found) - 1)
    assert not found[-1]["chosen"]
    context.slot.close(10)


@pytest.mark.parametrize(
    "report",
    [
        {},
        {"targets": "no list", "split": 3},
        {
            "targets": [1, {"name": 5, "value": float("inf"), "bound": "x", "relation": ["<="], "passed": 1}],
            "split": {"state_bytes_per_user": []},
        },
    ],
)
def test_a_strange_report_breaks_nothing(context: ServerContext, report: dict) -> None:
    context.slot.switch(dataclasses.replace(load_bundle(context.settings), report=report))
    found = read(context)
    assert found["cache"]["state_bytes_per_user"] is None
    assert all(not gate["passed"] and gate["value"] is None is gate["relation"] for gate in found["gates"])
    context.slot.close(10)


def test_descriptors_are_not_leaked(context: ServerContext) -> None:
    first = read(context)["process"]["descriptors"]
    with open(os.devnull):
        assert read(context)["process"]["descriptors"] == first + 1
    assert read(context)["process"]["descriptors"] == first
