"""Checks and score agreement: bounds hold or fail, and NaN never passes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.backends.contract import Array
from engines.measure.percentiles import Percentiles
from engines.recipes.recipe import Gates
from engines.serve.ranker import Ranker
from engines.verify.agreement import EXACT_DB, agreement
from engines.verify.checks import Check, auc_checks, check_invariance, latency_checks
from engines.verify.latency import RequestLatency
from engines.verify.scores import score_errors
from quant.requests.spec import Request


@pytest.mark.parametrize(
    ("value", "bound", "relation", "passed"),
    [(1.0, 1.0, "<=", True), (1.1, 1.0, "<=", False), (1.0, 1.0, ">=", True), (0.9, 1.0, ">=", False),
     (float("nan"), 1.0, "<=", False), (float("nan"), 1.0, ">=", False)],
)  # fmt: skip
def test_a_target_holds_or_not(value: float, bound: float, relation: str, passed: bool) -> None:
    assert Check("t", value, bound, relation).passed is passed


@settings(deadline=None)  # the first call imports scipy
@given(st.integers(0, 2**31), st.integers(2, 40))
def test_agreement_with_itself_is_perfect(seed: int, n: int) -> None:
    scores = np.random.default_rng(seed).standard_normal(n).astype(np.float32)
    same = agreement([scores], [scores.copy()])
    assert (same.max_abs, same.top_k_overlap, same.sqnr_db) == (0.0, 1.0, EXACT_DB)
    assert same.kendall_tau == pytest.approx(1.0)


def test_agreement_measures_what_it_says() -> None:
    reference = [np.array([3.0, 1.0, 2.0]), np.array([-1.0, 4.0])]
    actual = [np.array([3.0, 2.0, 1.0]), np.array([-1.0, 4.5])]
    found = agreement(reference, actual, k=1)
    assert found.max_abs == 1.0
    assert found.rows == 5
    # signal 9+1+4+1+16 = 31, noise 1+1+0.25
    assert found.sqnr_db == pytest.approx(10 * np.log10(31 / 2.25))
    # one of the three pairs of the first request is swapped: tau 1/3; the second request agrees
    assert found.kendall_tau == pytest.approx((1 / 3 + 1) / 2)
    assert found.top_k_overlap == 1.0
    assert found.max_probability == pytest.approx(1 / (1 + np.exp(-2.0)) - 1 / (1 + np.exp(-1.0)))


def test_ranking_is_judged_within_requests() -> None:
    # The order is wrong across requests and right within each.
    reference = [np.array([0.0, 1.0]), np.array([10.0, 11.0])]
    actual = [np.array([10.0, 11.0]), np.array([0.0, 1.0])]
    assert agreement(reference, actual).kendall_tau == 1.0


def test_a_constant_answer_ranks_nothing() -> None:
    assert agreement([np.array([1.0, 2.0, 3.0])], [np.zeros(3)]).kendall_tau == 0.0


def test_nan_makes_every_figure_fail() -> None:
    found = agreement([np.array([1.0, 2.0])], [np.array([1.0, np.nan])])
    assert not Check("max", found.max_abs, 1e9).passed
    assert not Check("sqnr", found.sqnr_db, -1e9, ">=").passed


class _SecondTaskTurnsNaN:
    """Scores one request correctly; with twice the rows, the second task's logits are NaN."""

    max_candidates = 6

    def score(self, user: Mapping[str, Array], items: Mapping[str, Array]) -> dict[str, Array]:
        x = items["x"]
        return {"like": x, "share": x if len(x) == 3 else np.full_like(x, np.nan)}


def test_nan_of_a_later_task_is_no_invariance() -> None:
    request = Request(0, {}, {"x": np.array([1.0, 2.0, 3.0], np.float32)})
    found = check_invariance(cast(Ranker, _SecondTaskTurnsNaN()), request)
    assert np.isnan(found.duplicates)
    assert not Check("identical", found.duplicates, 1e9).passed


class _RowsOfAnEngine:
    """Scores as many candidates as an engine accepts; a candidate's place in the call changes its score."""

    def __init__(self, max_candidates: int) -> None:
        self.max_candidates = max_candidates

    def score(self, user: Mapping[str, Array], items: Mapping[str, Array]) -> dict[str, Array]:
        assert len(items["x"]) <= self.max_candidates
        return {"like": items["x"] + np.arange(len(items["x"]), dtype=np.float32)}


@pytest.mark.parametrize(("most", "difference"), [(1, 0.0), (2, 1.0), (5, 1.0)])
def test_a_request_as_large_as_the_engine_accepts_is_checked(most: int, difference: float) -> None:
    request = Request(0, {}, {"x": np.zeros(most, np.float32)})
    found = check_invariance(cast(Ranker, _RowsOfAnEngine(most)), request)
    assert found.duplicates == difference  # an engine for one row never sees a candidate twice


def test_auc_and_latency_checks() -> None:
    found = auc_checks(Gates(auc_change=1e-4), {"like": 0.75}, {"like": 0.7502})
    assert [t.passed for t in found] == [False]
    p = Percentiles(1.0, 2.0, 3.0)
    latency = RequestLatency(256, p, p, p, p, speedup=1.5, limit=2.0)
    assert latency.fraction_of_limit == 0.75
    found = latency_checks(Gates(fraction_of_limit=0.8, request_p99_ms=4.0), latency)
    assert [t.passed for t in found] == [False, True]
    assert latency_checks(Gates(), latency) == []


def test_score_errors_joins_all_tasks_and_rows() -> None:
    reference = [{"a": np.array([1.0, 2.0]), "b": np.array([0.0, 0.0])}]
    moved = [{"a": np.array([1.5, 2.0]), "b": np.array([0.0, -1.0])}]
    assert sorted(score_errors(reference, moved)) == [-1.0, 0.0, 0.0, 0.5]
