"""The measurement behind micro-batching: which sizes, what is skipped, and that it measures the right thing."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from engines import Ranker
from engines.bundle.manifest import engine_for, read_manifest
from engines.serve.score_request import Scored, ScoreRequest
from engines.verify.batching import measure_batching
from graphs.base.errors import UgsepError
from quant.requests.spec import Request
from tests import tiny


def requests_of(users: int) -> list[Request]:
    return [Request(i, *tiny.user_and_items(3, seed=i)) for i in range(users)]


@pytest.fixture
def ranker(built_bundle: Path):  # type: ignore[no-untyped-def]
    with Ranker.from_bundle(built_bundle) as loaded:
        yield loaded


class Counted:
    """A ranker whose calls take the given seconds: per call, and per candidate in a call."""

    takes_index, max_users, max_candidates = True, 4, 32

    def __init__(self, per_call: float, per_candidate: float, missing: str = "") -> None:
        self.per_call, self.per_candidate, self.missing = per_call, per_candidate, missing
        self.calls: list[tuple[int, int]] = []

    def _run(self, users: int, candidates: int) -> dict[str, np.ndarray]:
        self.calls.append((users, candidates))
        time.sleep(self.per_call + self.per_candidate * candidates)
        return {"like": np.zeros(candidates, np.float32)}

    def score(self, user: dict[str, np.ndarray], items: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return self._run(1, len(items["item_id"]))

    def score_requests(self, requests: list[ScoreRequest]) -> list[Scored | UgsepError]:
        if self.missing:
            return [UgsepError(self.missing)]
        total = sum(len(r.items["item_id"]) for r in requests)
        return [Scored(self._run(len(requests), total), 1, 0, 0.0, 0.0, len(requests))]


def test_the_gain_is_that_of_sharing_the_cost_of_a_call() -> None:
    found = measure_batching(Counted(1e-3, 1e-5), requests_of(16))  # type: ignore[arg-type]
    timings = {(t.users, t.candidates): t for t in found.timings}
    assert list(timings) == [(2, 1), (2, 4), (2, 16), (4, 1), (4, 4)]
    assert timings[4, 1].separate_ms >= 4.04
    assert timings[4, 1].batched_ms >= 1.04
    assert 2 < timings[4, 1].speedup < 8, "four calls against one"
    assert found.notes == ()


def test_calls_take_turns_and_are_as_large_as_they_say() -> None:
    ranker = Counted(1e-4, 0)
    measure_batching(ranker, requests_of(2))  # type: ignore[arg-type]
    assert set(ranker.calls) == {(1, 1), (2, 2), (1, 4), (2, 8), (1, 16), (2, 32)}
    turns = "".join("b" if users > 1 else "s" for users, candidates in ranker.calls if candidates in (16, 32))
    assert turns.count("s") == 2 * turns.count("b") >= 40
    assert "bbb" not in turns


def test_sizes_that_would_take_too_long_are_skipped_and_noted() -> None:
    found = measure_batching(Counted(0, 2e-3), requests_of(16), budget_seconds=2.0)  # type: ignore[arg-type]
    measured = {f"{t.users} x {t.candidates}" for t in found.timings}
    (note,) = found.notes
    skipped = (
        note.removeprefix("batching not measured at ").removesuffix(" (users x candidates): too slow").split(", ")
    )
    assert "2 x 1" in measured
    assert "2 x 16" in skipped, "32 candidates a call take 64 ms, and 20 rounds 2.6 s"
    assert sorted([*measured, *skipped]) == ["2 x 1", "2 x 16", "2 x 4", "4 x 1", "4 x 4"]


def test_users_are_different_ones() -> None:
    found = measure_batching(Counted(1e-4, 0), requests_of(3) * 5)  # type: ignore[arg-type]
    assert {t.users for t in found.timings} == {2}
    assert found.notes == ("batching measured up to 3 users: the requests have no more",)


def test_an_engine_for_single_users_is_not_measured(ranker: Ranker) -> None:
    ranker.takes_index = False
    found = measure_batching(ranker, requests_of(4))
    assert found.timings == ()
    assert "serves one user per call" in found.notes[0]


def test_a_request_that_is_refused_ends_the_measurement() -> None:
    with pytest.raises(UgsepError, match="no such feature"):
        measure_batching(Counted(0, 0, missing="no such feature"), requests_of(4))  # type: ignore[arg-type]


def test_the_user_states_are_cached_in_all_timed_calls(built_bundle: Path) -> None:
    manifest = read_manifest(built_bundle)
    pair = engine_for(manifest, "user"), engine_for(manifest, "item")
    with Ranker.from_engines(built_bundle, manifest, *pair) as ranker:
        found = measure_batching(ranker, requests_of(8), budget_seconds=0.5)
        assert ranker.cache_info().misses == 8
    assert (2, 1) in {(t.users, t.candidates) for t in found.timings}
