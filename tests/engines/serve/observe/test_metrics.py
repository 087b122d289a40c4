from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from engines.serve.core.job import Answer, StageSeconds
from engines.serve.core.outcome import Outcome
from engines.serve.core.served_bundle import ServedBundle
from engines.serve.errors import DeadlineExceeded, NotReady, QueueFull
from engines.serve.observe.metrics import Metrics
from graphs.base.errors import UgsepError
from tests import tiny
from tests.engines.serve.core.jobs import SimpleJob, load, request

Labels = tuple[tuple[str, str], ...]


@pytest.fixture
def served(built_bundle: Path) -> Iterator[ServedBundle]:
    found = load(built_bundle, "a" * 12)
    yield found
    found.ranker.close()


def outcome(served: ServedBundle, result: Answer | Exception, code: int = 200, users_only: bool = False) -> Outcome:
    now = time.monotonic()
    job = SimpleJob(request(), arrived=now - 0.004, users_only=users_only)
    return Outcome(job, job.request, result, served, 5, code, now - 0.003, 0.0002, now)


def answer(served: ServedBundle, misses: int = 0, users: int = 1) -> Answer:
    return Answer(served, {}, 1, misses, users, StageSeconds(0.001, 0.002 if misses else 0.0, 0.0005))


def scraped(metrics: Metrics) -> dict[str, dict[Labels, float]]:
    text, kind = metrics.render()
    assert kind.startswith("text/plain")
    found: dict[str, dict[Labels, float]] = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found


def by(label: str, samples: dict[Labels, float]) -> dict[str, float]:
    return {dict(labels)[label]: value for labels, value in samples.items()}


def test_requests_are_counted_by_version_code_and_stage(served: ServedBundle) -> None:
    metrics = Metrics()
    metrics.observe(outcome(served, answer(served, misses=1)))
    metrics.observe(outcome(served, answer(served, users=8)))
    metrics.observe(outcome(served, UgsepError("bad"), 400))
    metrics.observe(outcome(served, DeadlineExceeded("late"), 504))
    metrics.observe(outcome(served, ZeroDivisionError(), 500))
    metrics.refused(QueueFull("full"), 429)
    metrics.refused(NotReady("draining"), 503)
    metrics.refused(UgsepError("too large"), 413)
    found = scraped(metrics)
    codes = by("code", found["ugsep_requests_total"])
    assert codes == {"200": 2, "400": 1, "504": 1, "500": 1, "429": 1, "503": 1, "413": 1}
    assert (("code", "200"), ("model", "tiny"), ("version", "a" * 12)) in found["ugsep_requests_total"]
    assert by("reason", found["ugsep_refused_total"]) == {"queue": 1, "deadline": 1, "drain": 1, "input": 2}
    counts = by("stage", found["ugsep_request_seconds_count"])
    assert counts == {"queue": 5, "user": 1, "item": 2, "codec": 5, "total": 5}
    sums = by("stage", found["ugsep_request_seconds_sum"])
    assert sums["user"] == pytest.approx(0.002)
    assert sums["total"] == pytest.approx(0.02, rel=0.1)
    assert found["ugsep_batch_users_bucket"][(("le", "1.0"),)] == 1
    assert found["ugsep_batch_users_bucket"][(("le", "8.0"),)] == 2
    assert found["ugsep_batch_users_count"][()] == found["ugsep_candidates_count"][()] == 2
    assert found["ugsep_candidates_sum"][()] == 10


def test_every_metric_is_there_before_the_first_request(served: ServedBundle) -> None:
    metrics = Metrics()
    metrics.watch(lambda: (3, 2), lambda: [served])
    found = scraped(metrics)
    assert found["ugsep_requests_waiting"][()] == 3
    assert found["ugsep_requests_running"][()] == 2
    assert set(by("reason", found["ugsep_refused_total"])) == {"queue", "deadline", "drain", "input"}
    (info,) = found["ugsep_bundle_info"]
    assert (dict(info)["model"], dict(info)["digest"], dict(info)["backend"]) == ("tiny", "a" * 12, "onnxruntime")
    for name in ("hits_total", "misses_total", "evictions_total", "users", "bytes"):
        assert found[f"ugsep_user_cache_{name}"][()] == 0, name
    assert found["ugsep_user_cache_limit_bytes"][()] == served.ranker.cache_info().limit
    assert found["process_resident_memory_bytes"][()] > 1e6


def test_a_job_for_users_only_has_no_item_stage(served: ServedBundle) -> None:
    metrics = Metrics()
    metrics.observe(outcome(served, answer(served, misses=1), users_only=True))
    found = scraped(metrics)
    assert found["ugsep_candidates_count"][()] == 0
    counts = by("stage", found["ugsep_request_seconds_count"])
    assert (counts["user"], counts["item"]) == (1, 0)


def test_the_cache_counters_never_fall_when_bundles_are_swapped_and_rolled_back(built_bundle: Path) -> None:
    old, new = load(built_bundle, "a" * 12), load(built_bundle, "b" * 12)
    bundles = [old]
    metrics = Metrics()
    metrics.watch(lambda: (0, 0), lambda: bundles)
    seen = []

    def score(served: ServedBundle, seed: int) -> None:
        served.ranker.score(*tiny.user_and_items(3, seed))
        found = scraped(metrics)
        seen.append((found["ugsep_user_cache_hits_total"][()], found["ugsep_user_cache_misses_total"][()]))

    score(old, 1)
    score(old, 1)
    bundles[:] = [new, old]
    score(new, 1)
    score(old, 2)  # a call that was under way at the switch
    bundles[:] = [old, new]
    score(old, 1)
    assert seen == [(0, 1), (1, 1), (1, 2), (1, 3), (2, 3)]
    for served in (old, new):
        served.ranker.close()


def test_other_parts_count_with_one_label_at_most() -> None:
    metrics = Metrics()
    metrics.count("swaps", "Swaps.", "outcome", "refused")
    metrics.count("swaps", "Swaps.", "outcome", "serving", by=2)
    metrics.count("recorded", "Requests kept.", by=7)
    found = scraped(metrics)
    assert by("outcome", found["ugsep_swaps_total"]) == {"refused": 1, "serving": 2}
    assert found["ugsep_recorded_total"] == {(): 7}


def test_two_servers_in_a_process_do_not_mix() -> None:
    first, second = Metrics(), Metrics()
    first.count("recorded", "Requests kept.")
    assert "ugsep_recorded_total" not in scraped(second)


def test_a_label_cannot_break_the_text(served: ServedBundle) -> None:
    metrics = Metrics()
    name = 'a"b\\c\nd'
    metrics.observe(outcome(dataclasses.replace(served, name=name), answer(served)))
    assert set(by("model", scraped(metrics)["ugsep_requests_total"])) == {name}
