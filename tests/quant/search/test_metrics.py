import numpy as np
import pytest

from quant.search.metrics import auc, effect_of


def test_auc_counts_pairs() -> None:
    r = np.random.default_rng()
    scores, labels = r.integers(0, 9, 50).astype(float), r.integers(0, 2, 50)
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[labels == 1] for b in scores[labels == 0]]
    assert auc(scores, labels) == pytest.approx(np.mean(pairs))
    assert auc(scores, np.ones(50)) is None


def test_effect_takes_the_worst_task() -> None:
    a, b = np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 2.0, 3.0, 5.0])
    moved = np.array([2.0, 1.0, 3.0, 5.0])
    effect = effect_of({"x": a, "y": b}, {"x": a, "y": moved}, {"y": np.array([1.0, 0.0, 0.0, 1.0])}, [4])
    assert effect.sqnr_db == pytest.approx(10 * np.log10(39 / 2))
    assert effect.kendall_tau == pytest.approx(4 / 6)  # one of six pairs is turned round
    assert effect.auc_change == pytest.approx(0.25)
    assert effect_of({"x": a}, {"x": a}, {}, [4]).auc_change is None
    assert effect_of({"x": a}, {"x": np.ones(4)}, {}, [4]).kendall_tau == 0.0


def test_candidates_are_ranked_within_their_request() -> None:
    # The order is wrong across the two requests but right within each, which is what a build's gate measures.
    reference, moved = np.array([0.0, 1.0, 10.0, 11.0]), np.array([10.0, 11.0, 0.0, 1.0])
    assert effect_of({"x": reference}, {"x": moved}, {}, [2, 2]).kendall_tau == 1.0
    assert effect_of({"x": reference}, {"x": moved}, {}, [4]).kendall_tau < 0
