"""The figures of a drift on scores that can be checked by hand."""

from __future__ import annotations

import numpy as np

from engines.verify.replay.drift import drift_by_task

REFERENCE = [{"like": np.array([1.0, 2.0, 3.0, 4.0], np.float32)}, {"like": np.array([5.0], np.float32)}]


def test_the_figures_by_hand() -> None:
    actual = [{"like": np.array([1.0, 2.0, 4.5, 4.0], np.float32)}, {"like": np.array([5.5], np.float32)}]
    found = drift_by_task([70, 71], REFERENCE, actual, 2)["like"]
    assert found.mean_abs == 0.4
    assert found.agreement.max_abs == 1.5
    assert found.lowest_tau == found.agreement.kendall_tau
    assert abs(found.lowest_tau - 4 / 6) < 1e-12, "one of six pairs is swapped"
    assert found.agreement.top_k_overlap == 1.0, "the same two are ahead, in another order"
    assert len(found.taus) == 1, "one candidate has no ranking"
    assert [(m.request_id, m.candidates, m.max_abs) for m in found.most_moved] == [(70, 4, 1.5), (71, 1, 0.5)]


def test_equal_scores_have_not_moved() -> None:
    found = drift_by_task([1, 2], REFERENCE, REFERENCE, 10)["like"]
    assert (found.mean_abs, found.p99_abs, found.lowest_tau, found.most_moved) == (0.0, 0.0, 1.0, ())
    assert found.agreement.kendall_tau == 1.0


def test_no_ranking_at_all() -> None:
    found = drift_by_task([71], REFERENCE[1:], REFERENCE[1:], 10)["like"]
    assert (found.lowest_tau, found.taus.size, found.agreement.top_k_overlap) == (1.0, 0, 1.0)


def test_only_tasks_of_both_are_compared() -> None:
    both = [{**scores, "share": scores["like"]} for scores in REFERENCE]
    assert list(drift_by_task([1, 2], both, REFERENCE, 10)) == ["like"]
    assert list(drift_by_task([1, 2], REFERENCE, both, 10)) == ["like"]
