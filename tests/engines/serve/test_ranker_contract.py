"""The Ranker's contract with runners, tested with minimal runners: time, devices, float16."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from engines.backends.built_engine import BuiltEngine, TensorSpec
from engines.backends.checks import check_feeds
from engines.backends.contract import Array, DeviceRunner
from engines.backends.engine_spec import Profile, Rows
from engines.serve.errors import DeadlineExceeded
from engines.serve.ranker import Ranker
from engines.serve.score_request import Scored, ScoreRequest
from graphs.base.errors import UgsepError
from graphs.base.names import USER_INDEX

WIDTH = 48
USER = (
    TensorSpec("id", "int64", ("users",)),
    TensorSpec("recent", "int64", ("users", 200)),
    TensorSpec("profile", "float32", ("users", 64)),
)
FEATURES = (
    TensorSpec("item_id", "int64", ("candidates",)),
    TensorSpec("genres", "int64", ("candidates", 6)),
    TensorSpec("quality", "float32", ("candidates", 32)),
    TensorSpec("affinity", "float32", ("candidates", 16)),
)


def engine(side: Any, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> BuiltEngine:
    return BuiltEngine("test", side, "fp32", (), 0, inputs, outputs, profiles=(Profile(Rows(1, 1, 2)),))


def pair(dtype: str = "float32") -> tuple[BuiltEngine, BuiltEngine]:
    state = TensorSpec("state", dtype, ("users", 3, WIDTH))
    index = TensorSpec(USER_INDEX, "int64", ("candidates",))
    click = TensorSpec("click", dtype, ("candidates",))
    return engine("user", USER, (state,)), engine("item", (*FEATURES, state, index), (click,))


def rows(specs: tuple[TensorSpec, ...], count: int, seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    out: dict[str, Array] = {}
    for spec in specs:
        shape = (count, *(d for d in spec.shape[1:] if isinstance(d, int)))
        out[spec.name] = (
            rng.integers(0, 99, shape) if spec.dtype == "int64" else rng.standard_normal(shape).astype(np.float32)
        )
    return out


class Instant:
    """A runner that checks its feeds, as real ones do, and computes nothing."""

    def __init__(self, built: BuiltEngine, results: dict[str, Array]) -> None:
        self.built, self.results = built, results

    def infer(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        check_feeds(self.built.inputs, feeds)
        return dict(self.results)

    def close(self) -> None:
        self.results.clear()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_score_that_is_not_finite_is_never_ranked(value: float) -> None:
    user_built, item_built = pair()
    state = {"state": np.zeros((1, 3, WIDTH), np.float32)}
    click = {"click": np.array([0.5, value, 1.5, value], np.float32)}
    ranker = Ranker(Instant(user_built, state), Instant(item_built, click), user_built, item_built)
    with pytest.raises(
        UgsepError, match=f"task 'click': the score of candidate 1 is {value}; its features are finite"
    ):
        ranker.score(rows(USER, 1), rows(FEATURES, 4))


@dataclass(frozen=True)
class Slot:
    """An array that only runners of the same memory may access."""

    hidden: Array

    @property
    def shape(self) -> tuple[int, ...]:
        return self.hidden.shape

    @property
    def nbytes(self) -> int:
        return int(self.hidden.nbytes)

    def numpy(self) -> Array:
        return self.hidden.copy()


class OnDevice:
    """A runner with its own memory; the item side adds the user's mean state to the candidates' mean quality."""

    def __init__(self, side: str, memory: str) -> None:
        self.side, self._memory = side, memory
        self.copied_back = 0

    @property
    def memory(self) -> str:
        return self._memory

    def infer(self, feeds: Mapping[str, Any]) -> dict[str, Array]:
        self.copied_back += 1
        return {name: slot.numpy() for name, slot in self.infer_on_device(feeds).items()}

    def infer_on_device(self, feeds: Mapping[str, Any]) -> dict[str, Slot]:
        held = {name: value.hidden if isinstance(value, Slot) else value for name, value in feeds.items()}
        if self.side == "user":
            mean = held["profile"].mean(axis=1)[:, None, None]
            return {"state": Slot(np.broadcast_to(mean, (len(mean), 3, WIDTH)).astype(np.float32))}
        per_user = held["state"].mean(axis=(1, 2))[held[USER_INDEX]]
        return {"click": Slot((per_user + held["quality"].mean(axis=1)).astype(np.float32))}

    def close(self) -> None:
        self.copied_back = -1


@pytest.mark.parametrize(("memories", "copies"), [(("gpu:0", "gpu:0"), 0), (("gpu:0", "gpu:1"), 2)])
def test_state_stays_on_a_shared_device_and_only_there(memories: tuple[str, str], copies: int) -> None:
    user_built, item_built = pair()
    user_runner, item_runner = OnDevice("user", memories[0]), OnDevice("item", memories[1])
    assert isinstance(user_runner, DeviceRunner)
    ranker = Ranker(user_runner, item_runner, user_built, item_built)
    user, items = rows(USER, 1), rows(FEATURES, 5)
    want = user["profile"].mean() + items["quality"].mean(axis=1)
    for _ in range(2):
        # FP32 means of 64 and 144 terms of magnitude one.
        np.testing.assert_allclose(ranker.score(user, items)["click"], want, rtol=0, atol=1e-6)
    index = np.array([1, 0, 1, 1, 0])
    users = rows(USER, 2, seed=1)
    got = ranker.score_users(users, items, index)["click"]
    want = users["profile"].mean(axis=1)[index] + items["quality"].mean(axis=1)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)
    # Once for the cached user, once for the two users; never if both engines share the device.
    assert user_runner.copied_back == copies
    info = ranker.cache_info()
    cached = 3 if copies else 1  # several users at once are cached only in host memory
    features = sum(value.nbytes for value in user.values())
    assert (info.hits, info.misses, info.bytes) == (1, cached, cached * (3 * WIDTH * 4 + features))
    assert ranker.user_state(user)["state"].shape == (1, 3, WIDTH)


def test_requests_run_one_by_one_on_a_device_and_their_states_stay_there() -> None:
    user_built, item_built = pair()
    user_runner, item_runner = OnDevice("user", "gpu:0"), OnDevice("item", "gpu:0")
    ranker = Ranker(user_runner, item_runner, user_built, item_built, user_engine_digest="a")
    one, two, items = rows(USER, 1), rows(USER, 2, seed=1), rows(FEATURES, 5)
    index = np.array([1, 0, 1, 1, 0])
    requests = [ScoreRequest(one, items), ScoreRequest(two, items, index), ScoreRequest(one, items)]
    results = ranker.score_requests([*requests, ScoreRequest(one, {}), ScoreRequest(one, items, deadline=0.0)])
    for given, rows_of, result in zip((one, two, one), (index * 0, index, index * 0), results[:3], strict=True):
        want = given["profile"].mean(axis=1)[rows_of] + items["quality"].mean(axis=1)
        assert isinstance(result, Scored)
        np.testing.assert_allclose(result.scores["click"], want, rtol=0, atol=1e-6)
    assert [(r.hits, r.misses, r.batch_users) for r in results[:3] if isinstance(r, Scored)] == [
        (0, 1, 1), (0, 2, 2), (1, 0, 1),
    ]  # fmt: skip
    assert "is missing" in str(results[3])
    assert isinstance(results[4], DeadlineExceeded)
    assert user_runner.copied_back == 0
    other = Ranker(user_runner, item_runner, user_built, item_built, user_engine_digest="a")
    assert other.adopt_states(ranker) == 0
    assert ranker.warm(two).states["state"].shape == (2, 3, WIDTH)


def test_float32_features_and_scores_around_a_float16_engine() -> None:
    spec = (TensorSpec("x", "float16", ("candidates", 3)),)
    fp16 = check_feeds(spec, {"x": np.full((2, 3), 1 / 3, np.float32)})["x"]
    np.testing.assert_array_equal(fp16, np.full((2, 3), 1 / 3, np.float16))
    with pytest.raises(UgsepError, match=r"'x' has a value beyond float16 \(65504\)"):
        check_feeds(spec, {"x": np.full((2, 3), 7e4, np.float32)})
    for other in (np.float64, np.int32):
        with pytest.raises(UgsepError, match="the engine takes float16"):
            check_feeds(spec, {"x": np.ones((2, 3), other)})
    user_built, item_built = pair("float16")
    state, click = np.ones((1, 3, WIDTH), np.float16), np.ones(4, np.float16)
    ranker = Ranker(
        Instant(user_built, {"state": state}), Instant(item_built, {"click": click}), user_built, item_built
    )
    assert ranker.score(rows(USER, 1), rows(FEATURES, 4))["click"].dtype == np.float32


def test_engines_of_different_models_are_refused() -> None:
    _, item_built = pair()
    other = engine("user", USER, (TensorSpec("memory", "float32", ("users", 7)),))
    with pytest.raises(UgsepError, match="has no input for state 'memory'; the engines are of different models"):
        Ranker(Instant(other, {}), Instant(item_built, {}), other, item_built)
