"""Replayed fixtures: what passes, and that nothing strange does."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from engines import Ranker
from engines.bundle.fixture_file import Fixture, Fixtures
from engines.bundle.fixtures import read_fixtures
from engines.serve.core.replay import Difference, FixtureResult, replay, score_alone
from graphs.base.errors import UgsepError

EXPECTED = np.array([1.0, 2.0], np.float32)
USER, ITEMS = {"age": np.ones((1, 2), np.float32)}, {"item_id": np.arange(2)}
FIXTURES = Fixtures((Fixture("two", USER, ITEMS, expected={"like": EXPECTED}),), {"like": 0.125})


def test_the_engines_of_a_bundle_repeat_its_fixtures(built_bundle: Path) -> None:
    with Ranker.from_bundle(built_bundle) as ranker:
        result = replay(read_fixtures(built_bundle), partial(score_alone, ranker))
        assert ranker.cache_info().hits > 0, "one fixture has a user whose state is known"
    assert (result.passed, result.ratio) == (True, 0.0)
    assert len(result.differences) == 5


@pytest.mark.parametrize(
    ("scores", "ratio"),
    [
        ([1.0, 2.0], 0.0),
        ([1.0, 2.125], 1.0),
        ([0.75, 2.0], 2.0),
        ([1.0, np.nan], np.inf),
        ([np.nan, 9.0], np.inf),
        ([np.inf, 2.0], np.inf),
        ([1.0], np.inf),
        ([[1.0, 2.0]], np.inf),
    ],
)
def test_only_scores_within_the_tolerance_pass(scores: list[float], ratio: float) -> None:
    result = replay(FIXTURES, lambda _: {"like": np.array(scores, np.float32)})
    assert (result.ratio, result.passed) == (ratio, ratio <= 1)


def test_a_missing_task_never_passes() -> None:
    assert not replay(FIXTURES, lambda _: {}).passed


def test_the_worst_difference_is_relative_to_its_bound() -> None:
    small, large = Difference("a", "buy", 0.02, 0.01), Difference("b", "like", 0.5, 1.0)
    result = FixtureResult((large, small))
    assert result.worst is small
    assert not result.passed
    assert str(small) == "fixture 'a', task 'buy': |difference| 0.02, bound 0.01"
    assert Difference("a", "buy", 1e-9, 0.0).ratio == np.inf
    assert Difference("a", "buy", 0.0, 0.0).ratio == 0


def test_nothing_compared_is_not_a_pass() -> None:
    without = Fixtures((Fixture("shown", USER, ITEMS),), {})
    assert not replay(without, lambda _: {}).passed


def test_a_refused_fixture_is_named() -> None:
    def refuse(_: object) -> dict[str, np.ndarray]:
        raise UgsepError("item feature 'item_id' has no rows; give at least one")

    with pytest.raises(UgsepError, match=r"^fixture 'two': item feature 'item_id' has no rows"):
        replay(FIXTURES, refuse)
