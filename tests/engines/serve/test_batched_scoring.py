"""Many requests at once: bit-equal to one by one, errors in their own place, as few engine calls as possible."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines import Ranker
from engines.backends.contract import Array
from engines.serve.errors import DeadlineExceeded
from engines.serve.score_request import Scored, ScoreRequest
from graphs.base.errors import UgsepError
from tests import tiny
from tests.engines.serve import exact_engines as exact

FAULTS = {
    "NaN user": "'profile' has a NaN or infinite value",
    "wrong id": "'item_id' has id -1; its table has 100 rows",
    "wrong dtype": r"'quality' is float64\[",
    "refused user": "the user engine refused these inputs",
    "refused item": "the item engine refused these inputs",
    "overflow": "task 'click': the score of candidate 0 is inf",
    "index": "user_index ranges from 0 to 9; must be in 0 to",
    "no index": "user features have 2 rows and no user_index; give one user",
    "too many users": "5 users, but the engines accept at most 4",
    "too many candidates": "13 candidates, but the item engine accepts at most 12",
    "late": "the deadline passed .* ms before (its batch|the user graph) could run",
}


@dataclasses.dataclass(frozen=True)
class Case:
    """A request in numbers: its users, each candidate's row of them, and what is wrong with it."""

    users: tuple[int, ...]
    rows: tuple[int, ...]
    fault: str = ""

    def request(self) -> ScoreRequest:
        user, items = exact.users(*self.users), exact.items(len(self.rows), seed=sum(self.rows) + self.users[0])
        index: Array | None = np.array(self.rows) if len(self.users) > 1 else None
        made = ScoreRequest(user, items, index)
        if self.fault == "NaN user":
            user["profile"][-1, 1] = np.nan
        elif self.fault == "wrong id":
            items["item_id"][-1] = -1
        elif self.fault == "wrong dtype":
            items["quality"] = items["quality"].astype(np.float64)
        elif self.fault == "refused user":
            user["user_id"][-1] = exact.REFUSED_ID
        elif self.fault == "refused item":
            items["item_id"][-1] = exact.REFUSED_ID
        elif self.fault == "overflow":
            items["quality"][0] = exact.OVERFLOW
            user["user_id"][:] = 50  # a positive factor of the infinite term
        elif self.fault == "index":
            made = made._replace(user_index=np.array([0] * (len(self.rows) - 1) + [9]))
        elif self.fault == "no index":
            made = made._replace(user=exact.users(1, 2), user_index=None)
        elif self.fault == "too many users":
            made = made._replace(user=exact.users(*range(5)), user_index=np.zeros(len(self.rows), int))
        elif self.fault == "too many candidates":
            made = made._replace(user=exact.users(1), items=exact.items(13), user_index=None)
        elif self.fault == "late":
            made = made._replace(deadline=time.monotonic() - 0.1)
        return made


@st.composite
def cases(draw: st.DrawFn) -> Case:
    numbers = draw(st.lists(st.integers(0, 6), min_size=1, max_size=exact.MAX_USERS))
    row = st.integers(0, len(numbers) - 1)
    rows = draw(st.lists(row, min_size=2, max_size=exact.MAX_CANDIDATES))
    return Case(tuple(numbers), tuple(rows), draw(st.sampled_from(["", "", "", *FAULTS])))


@settings(max_examples=150, deadline=None)
@given(
    batch=st.lists(cases(), max_size=7), known=st.sets(st.integers(0, 6)), cache_bytes=st.sampled_from([0, 200, 9999])
)
def test_a_batch_is_bit_equal_to_single_requests(batch: list[Case], known: set[int], cache_bytes: int) -> None:
    ranker, user_engine, _ = exact.exact_ranker(cache_bytes)
    for number in known:
        ranker.user_state(exact.users(number))
    before, user_engine.calls = ranker.cache_info(), []
    requests = [case.request() for case in batch]
    results = ranker.score_requests(requests)
    assert len(results) == len(batch)
    for case, request, result in zip(batch, requests, results, strict=True):
        if case.fault:
            with pytest.raises(UgsepError, match=FAULTS[case.fault]):
                raise result if isinstance(result, UgsepError) else AssertionError(result)
            assert "\n" not in str(result)
            continue
        assert isinstance(result, Scored), result
        want = exact.expected(request.user, request.items, request.user_index)
        np.testing.assert_array_equal(result.scores["click"], want)
        assert result.scores["click"].dtype == np.float32
        assert result.hits + result.misses == len(case.users)
        assert 1 <= result.batch_users <= exact.MAX_USERS
    sound = [r for r in results if isinstance(r, Scored)]
    after = ranker.cache_info()
    assert sum(r.misses for r in sound) <= after.misses - before.misses
    if all(not case.fault for case in batch):
        assert sum(r.hits for r in sound) == after.hits - before.hits
        assert sum(r.misses for r in sound) == after.misses - before.misses == sum(user_engine.calls)
        distinct = {number for case in batch for number in case.users}
        assert after.misses - before.misses == len(distinct - known if cache_bytes == 9999 else distinct) or (
            cache_bytes == 200
        )


def test_many_requests_take_one_call_of_each_engine() -> None:
    ranker, user_engine, item_engine = exact.exact_ranker()
    ranker.user_state(exact.users(1))
    user_engine.calls.clear()
    requests = [
        ScoreRequest(exact.users(1), exact.items(2)),
        ScoreRequest(exact.users(2), exact.items(3)),
        ScoreRequest(exact.users(3, 2), exact.items(4), np.array([0, 1, 1, 0])),
        ScoreRequest(exact.users(2), exact.items(3)),
    ]
    results = ranker.score_requests(requests)
    assert (user_engine.calls, item_engine.calls) == ([2], [12])
    found = [(r.hits, r.misses, r.batch_users) for r in results if isinstance(r, Scored)]
    assert found == [(1, 0, 3), (0, 1, 3), (1, 1, 3), (1, 0, 3)]
    seconds = {(r.user_seconds, r.item_seconds) for r in results if isinstance(r, Scored)}
    assert len(seconds) == 1
    assert min(next(iter(seconds))) > 0
    (again, _, _, _) = ranker.score_requests(requests)
    assert isinstance(again, Scored)
    assert (again.hits, again.misses, again.user_seconds) == (1, 0, 0)


def test_calls_are_cut_where_the_profiles_end() -> None:
    ranker, user_engine, item_engine = exact.exact_ranker()
    requests = [ScoreRequest(exact.users(n), exact.items(2)) for n in range(6)]
    requests.append(ScoreRequest(exact.users(9), exact.items(11)))
    results = ranker.score_requests(requests)
    assert (user_engine.calls, item_engine.calls) == ([4, 3], [8, 4, 11])
    assert [r.batch_users for r in results if isinstance(r, Scored)] == [4, 4, 4, 4, 2, 2, 1]
    assert ranker.score_requests([]) == []


@pytest.mark.parametrize("index", [None, ("candidates",)])
def test_an_engine_for_single_users_gets_a_call_each(index: tuple[str, ...] | None) -> None:
    ranker, user_engine, item_engine = exact.exact_ranker(index=index)
    requests = [ScoreRequest(exact.users(n), exact.items(2)) for n in (1, 2, 1)]
    for request, result in zip(requests, ranker.score_requests(requests), strict=True):
        assert isinstance(result, Scored)
        np.testing.assert_array_equal(result.scores["click"], exact.expected(request.user, request.items))
    assert (user_engine.calls, item_engine.calls) == (([1, 1], [2, 2, 2]) if index is None else ([2], [6]))
    if index is None:
        two = ScoreRequest(exact.users(1, 2), exact.items(2), np.array([0, 1]))
        (refused,) = ranker.score_requests([two])
        assert "serves one user per call" in str(refused)
        assert len(ranker.warm(exact.users(1, 2, 3)).states["state"]) == 3


def test_several_users_in_one_call_are_cached() -> None:
    ranker, user_engine, _ = exact.exact_ranker()
    ranker.score_users(exact.users(1, 2), exact.items(3), np.array([0, 1, 1]))
    got = ranker.score(exact.users(2), exact.items(5))["click"]
    np.testing.assert_array_equal(got, exact.expected(exact.users(2), exact.items(5)))
    assert user_engine.calls == [2]
    # A view would keep the other users' states of the call in memory.
    assert all(value.base is None for value in ranker.user_state(exact.users(2)).values())


def test_requests_whose_deadline_passes_in_the_user_graph_leave_the_others_alone() -> None:
    ranker, user_engine, item_engine = exact.exact_ranker()
    deadline = time.monotonic() + 0.1
    user_engine.before = lambda feeds: time.sleep(0.15)
    requests = [ScoreRequest(exact.users(n), exact.items(3), None, deadline if n % 2 else None) for n in range(4)]
    results = ranker.score_requests(requests)
    assert [isinstance(r, DeadlineExceeded) for r in results] == [False, True, False, True]
    assert "ms before the item graph could run; allow more time" in str(results[1])
    assert (user_engine.calls, item_engine.calls) == ([4], [6])
    with pytest.raises(DeadlineExceeded, match="before the item graph could run"):
        ranker.score(exact.users(8), exact.items(3), deadline=time.monotonic() + 0.05)
    with pytest.raises(DeadlineExceeded, match="before the user graph could run"):
        ranker.score(exact.users(9), exact.items(3), deadline=time.monotonic())
    with pytest.raises(DeadlineExceeded, match="before the user graph could run"):
        ranker.warm(exact.users(9), deadline=time.monotonic())
    assert len(user_engine.calls) == 2
    assert ranker.score(exact.users(8), exact.items(3), deadline=time.monotonic() + 60)["click"].shape == (3,)


def test_users_whose_deadline_passes_before_their_call_are_not_computed() -> None:
    ranker, user_engine, _ = exact.exact_ranker()
    deadline = time.monotonic() + 0.1
    user_engine.before = lambda feeds: time.sleep(0.15)
    requests = [ScoreRequest(exact.users(n), exact.items(1), None, deadline if n > 3 else None) for n in range(6)]
    results = ranker.score_requests(requests)
    assert [isinstance(r, DeadlineExceeded) for r in results] == [False] * 4 + [True] * 2
    assert "before the user graph could run" in str(results[5])
    assert user_engine.calls == [4]


@pytest.mark.parametrize("patient_first", [True, False])
def test_a_user_is_computed_for_the_most_patient_of_its_requests(patient_first: bool) -> None:
    ranker, user_engine, _ = exact.exact_ranker()
    user_engine.before = lambda feeds: time.sleep(0.15)
    others = [ScoreRequest(exact.users(n), exact.items(1)) for n in range(4)]
    last = exact.users(4)
    hurried = ScoreRequest(last, exact.items(1), None, time.monotonic() + 0.1)
    patient = ScoreRequest(last, exact.items(1))
    both = [patient, hurried] if patient_first else [hurried, patient]
    results = ranker.score_requests([*others, *both])[4:]
    assert [isinstance(r, Scored) for r in results] == [patient_first, not patient_first]
    assert user_engine.calls == [4, 1]


def test_a_request_that_waits_for_another_thread_s_user_leaves_at_its_deadline() -> None:
    ranker, user_engine, _ = exact.exact_ranker()
    started, go = threading.Event(), threading.Event()

    def hold(feeds: Mapping[str, Array]) -> None:
        if 1 in feeds["user_id"]:
            started.set()
            assert go.wait(10)

    user_engine.before = hold
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(ranker.score, exact.users(1), exact.items(3))
        assert started.wait(10)
        waits = ScoreRequest(exact.users(1), exact.items(3), None, time.monotonic() + 0.05)
        late, other = ranker.score_requests([waits, ScoreRequest(exact.users(2), exact.items(3))])
        go.set()
        assert isinstance(late, DeadlineExceeded)
        assert "another request had computed the same user" in str(late)
        assert isinstance(other, Scored)
        assert first.result(10)["click"].shape == (3,)


def test_overlapping_batches_of_many_threads_neither_deadlock_nor_mix() -> None:
    ranker, user_engine, _ = exact.exact_ranker(cache_bytes=400)
    failures = iter([True, False, False] * 1000)

    def sometimes(feeds: Mapping[str, Array]) -> None:
        time.sleep(0.0005)
        if next(failures):
            raise UgsepError("the device is out of memory")

    user_engine.before = sometimes

    def work(seed: int) -> tuple[int, int]:
        rng, sound, failed = np.random.default_rng(seed), 0, 0
        for _ in range(15):
            numbers = rng.permutation(8)[: rng.integers(1, 6)]
            requests = [ScoreRequest(exact.users(int(n)), exact.items(2)) for n in numbers]
            for request, result in zip(requests, ranker.score_requests(requests), strict=True):
                if isinstance(result, UgsepError):
                    assert "out of memory" in str(result)
                    failed += 1
                else:
                    want = exact.expected(request.user, request.items)
                    np.testing.assert_array_equal(result.scores["click"], want)
                    sound += 1
        return sound, failed

    with ThreadPoolExecutor(8) as pool:
        counted = np.array([f.result(60) for f in [pool.submit(work, seed) for seed in range(8)]])
    sound, failed = counted.sum(axis=0)
    assert sound > failed > 0


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 16), min_size=2, max_size=4),
    seed=st.integers(0, 99),
    known=st.sets(st.integers(0, 3)),
)
def test_a_built_bundle_scores_batches_as_its_graph_for_several_users(
    built_ranker: Ranker, sizes: list[int], seed: int, known: set[int]
) -> None:
    ranker = built_ranker
    ranker.forget_users()
    given_users = [tiny.user_and_items(1, seed=100 * seed + n)[0] for n in range(len(sizes))]
    requests = [
        ScoreRequest(u, tiny.user_and_items(n, seed=seed)[1]) for u, n in zip(given_users, sizes, strict=True)
    ]
    for number in known & set(range(len(sizes))):
        ranker.user_state(given_users[number])
    results = ranker.score_requests(requests)
    for n, (request, result) in enumerate(zip(requests, results, strict=True)):
        assert isinstance(result, Scored), result
        # One more user and candidate makes the engine use the same graph as the batch.
        other = given_users[n - 1]
        pair = {name: np.concatenate([value, other[name]]) for name, value in request.user.items()}
        padded = {name: np.concatenate([value, value[:1]]) for name, value in request.items.items()}
        index = np.array([0] * sizes[n] + [1])
        same_graph = ranker.score_users(pair, padded, index)["like"][:-1]
        np.testing.assert_array_equal(result.scores["like"], same_graph)
        # The graph for one user rounds differently: FP32 logits of order one.
        np.testing.assert_allclose(
            result.scores["like"], ranker.score(request.user, request.items)["like"], atol=1e-5
        )


@pytest.fixture(scope="module")
def built_ranker(built_bundle: Path) -> Any:
    with Ranker.from_bundle(built_bundle) as made:
        yield made


def test_one_request_of_one_user_takes_the_path_of_score(built_ranker: Ranker) -> None:
    user, items = tiny.user_and_items(7)
    want = built_ranker.score(user, items)["like"]
    for index in (None, np.zeros(7, np.int64)):
        (alone,) = built_ranker.score_requests([ScoreRequest(user, items, index)])
        assert isinstance(alone, Scored)
        np.testing.assert_array_equal(alone.scores["like"], want)
        assert (alone.hits, alone.misses, alone.batch_users) == (1, 0, 1)
