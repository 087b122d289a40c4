"""The Ranker: correct scores, one user computation, and one-line errors for bad requests."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engines import Ranker
from engines.bundle.bundle import Bundle
from engines.bundle.manifest import Engine, Manifest, engine_for
from engines.serve import ranker as ranking
from graphs.base.errors import UgsepError
from tests import tiny


@pytest.fixture
def ranker(built_bundle: Path):
    made = Ranker.from_bundle(built_bundle)
    yield made
    made.close()


def whole_model_scores(user, items) -> np.ndarray:
    n = len(items["item_id"])
    features = {**{k: np.repeat(v, n, axis=0) for k, v in user.items()}, **items}
    with torch.no_grad():
        return tiny.model()({k: torch.from_numpy(v) for k, v in features.items()})["like"].numpy()


@pytest.mark.parametrize("candidates", [1, 2, 33])
def test_scores_are_the_model_s_up_to_int8(ranker: Ranker, candidates: int) -> None:
    user, items = tiny.user_and_items(candidates, seed=candidates)
    wanted = whole_model_scores(user, items)
    got = ranker.score(user, items)["like"]
    assert got.shape == (candidates,)
    # Two layers of int8 weights and activations with 32 columns: about 1 % of the logits' spread each.
    assert np.abs(got - wanted).max() < 0.1 * max(1.0, np.abs(wanted).max())


def test_the_user_is_computed_once(ranker: Ranker) -> None:
    user, items = tiny.user_and_items(5)
    first = ranker.score(user, items)["like"]
    again = ranker.score({k: v.copy() for k, v in user.items()}, items)["like"]
    np.testing.assert_array_equal(first, again)
    info = ranker.cache_info()
    assert (info.hits, info.misses, info.users) == (1, 1, 1)
    other, _ = tiny.user_and_items(5, seed=9)
    assert not np.array_equal(ranker.score(other, items)["like"], first)
    assert ranker.cache_info().misses == 2
    assert ranker.cache_info().hit_ratio == pytest.approx(1 / 3)
    ranker.forget_users()
    assert ranker.cache_info().bytes == 0


def test_the_cache_keeps_its_byte_limit_and_drops_the_oldest(built_bundle: Path) -> None:
    probe = Ranker.from_bundle(built_bundle)
    users = [tiny.user_and_items(1, seed=s)[0] for s in range(4)]
    probe.user_state(users[0])
    size = probe.cache_info().bytes
    probe.close()
    small = Ranker.from_bundle(built_bundle, cache_bytes=2 * size)
    for user in (*users, users[3], users[0]):
        small.user_state(user)
    info = small.cache_info()
    assert info.users == 2
    assert info.bytes <= info.limit
    assert (info.hits, info.misses) == (1, 5)  # only the repeated newest user is still there
    small.close()


def test_several_users_in_one_call_score_as_one_by_one(ranker: Ranker) -> None:
    requests = [tiny.user_and_items(n, seed=n) for n in (3, 1, 6)]
    users = {k: np.concatenate([u[k] for u, _ in requests]) for k in requests[0][0]}
    items = {k: np.concatenate([i[k] for _, i in requests]) for k in requests[0][1]}
    index = np.repeat(np.arange(3), [3, 1, 6])
    together = ranker.score_users(users, items, index)["like"]
    apart = np.concatenate([ranker.score(u, i)["like"] for u, i in requests])
    # The same arithmetic at other row positions: FP32 rounding of logits of order one.
    np.testing.assert_allclose(together, apart, rtol=0, atol=1e-5)


def test_threads_share_a_ranker(ranker: Ranker) -> None:
    requests = [tiny.user_and_items(7, seed=s) for s in range(8)]
    wanted = [ranker.score(*r)["like"] for r in requests]
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda r: ranker.score(*r)["like"], requests * 5))
    for i, scores in enumerate(got):
        np.testing.assert_array_equal(scores, wanted[i % 8])


def test_threads_share_a_cache_that_is_too_small(built_bundle: Path) -> None:
    probe = Ranker.from_bundle(built_bundle)
    requests = [tiny.user_and_items(7, seed=s) for s in range(6)]
    wanted = [probe.score(*r)["like"] for r in requests]
    size = probe.cache_info().bytes // 6
    probe.close()
    small = Ranker.from_bundle(built_bundle, cache_bytes=2 * size + 1)
    # Neighbours sometimes share a user, so hits, misses and evictions all happen concurrently.
    turns = [i // 2 % 6 for i in range(240)]
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda i: small.score(*requests[i])["like"], turns))
    for i, scores in zip(turns, got, strict=True):
        np.testing.assert_array_equal(scores, wanted[i])
    info = small.cache_info()
    assert info.hits + info.misses == 240
    assert info.misses > 6
    assert (info.users, info.bytes) == (2, 2 * size)
    small.close()


def test_a_state_larger_than_the_cache_is_not_kept(built_bundle: Path) -> None:
    ranker = Ranker.from_bundle(built_bundle, cache_bytes=1)
    for _ in range(2):
        ranker.score(*tiny.user_and_items(2))
    info = ranker.cache_info()
    assert (info.hits, info.misses, info.users, info.bytes) == (0, 2, 0, 0)
    ranker.close()


def test_a_cached_state_cannot_be_overwritten(ranker: Ranker) -> None:
    state = ranker.user_state(tiny.user_and_items(1)[0])
    with pytest.raises(ValueError, match="read-only"):
        next(iter(state.values()))[:] = 0


def drop(name: str):
    return lambda user, items: (user.pop(name, None), items.pop(name, None))


def put(side: int, name: str, value):
    return lambda *both: both[side].__setitem__(name, value)


BAD = {
    "missing user feature": (drop("age"), "user feature 'age' is missing"),
    "missing item feature": (drop("genres"), "item feature 'genres' is missing"),
    "unknown user feature": (put(0, "agee", np.zeros((1, 3), np.float32)), "user feature 'agee', did you mean 'age'"),
    "unknown item feature": (put(1, "genre", np.zeros((4, 7), np.float32)), "unknown item feature 'genre'"),
    "wrong dtype": (put(1, "genres", np.zeros((4, 7))), r"'genres' is float64\[4, 7\]; the engine takes float32"),
    "wrong shape": (put(1, "genres", np.zeros((4, 8), np.float32)), r"'genres' is float32\[4, 8\]"),
    "no candidates": (put(1, "item_id", np.zeros(0, np.int64)), "'item_id' has no rows"),
    "rows that differ": (put(1, "item_id", np.zeros(3, np.int64)), "has [34] rows, others have [34]"),
    "two users": (put(0, "user_id", np.zeros(2, np.int64)), "has .* rows"),
    "user NaN": (put(0, "age", np.full((1, 3), np.nan, np.float32)), "'age' has a NaN or infinite value"),
    "user list": (put(0, "age", [[0.0, 0.0, 0.0]]), "user feature 'age' is a list; give a NumPy array"),
    "item tensor": (put(1, "genres", torch.zeros(4, 7)), "'genres' is a Tensor; give a NumPy array"),
    "user dates": (put(0, "user_id", np.zeros(1, "datetime64[s]")), r"'user_id' has dtype datetime64\[s\]"),
    "user objects": (put(0, "user_id", np.array([None])), "'user_id' has dtype object; give numbers"),
    "item text": (put(1, "item_id", np.array(["a"] * 4)), "'item_id' has dtype <U1; give numbers"),
    "user complex": (put(0, "age", np.zeros((1, 3), np.complex64)), "'age' has dtype complex64; give numbers"),
    "byte order": (put(1, "genres", np.ones((4, 7), ">f4")), "'genres' has dtype >f4; give numbers in native"),
    "a name that is not text": (lambda user, items: items.update({3: items["genres"]}), "unknown item feature '3'"),
    "user scalar": (put(0, "user_id", np.array(3)), "'user_id' has no rows"),
    "negative id": (put(1, "item_id", np.array([1, 2, -1, 3])), "'item_id' has id -1; its table has 61 rows"),
    "item infinity": (put(1, "affinity", np.full((4, 4), np.inf, np.float32)), "'affinity' has a NaN or infinite"),
}  # fmt: skip


@pytest.mark.parametrize("case", sorted(BAD))
def test_a_bad_request_is_one_line_and_the_process_lives_on(ranker: Ranker, case: str) -> None:
    change, message = BAD[case]
    user, items = tiny.user_and_items(4)
    change(user, items)
    with pytest.raises(UgsepError, match=message) as caught:
        ranker.score(user, items)
    assert "\n" not in str(caught.value)
    assert np.isfinite(ranker.score(*tiny.user_and_items(4))["like"]).all()


def test_more_candidates_than_the_profile_are_refused(ranker: Ranker) -> None:
    with pytest.raises(UgsepError, match="65 candidates, but the item engine accepts at most 64"):
        ranker.score(*tiny.user_and_items(65))


def test_more_users_than_the_profile_are_refused(ranker: Ranker) -> None:
    user, items = tiny.user_and_items(4)
    users = {name: np.repeat(value, 17, axis=0) for name, value in user.items()}
    with pytest.raises(UgsepError, match="17 users, but the engines accept at most 16"):
        ranker.score_users(users, items, np.zeros(4, np.int64))


def test_what_is_no_mapping_is_refused(ranker: Ranker) -> None:
    user, items = tiny.user_and_items(4)
    with pytest.raises(UgsepError, match="user features are a list; give a mapping"):
        ranker.score([user], items)
    with pytest.raises(UgsepError, match="item features are a NoneType; give a mapping"):
        ranker.score(user, None)


@pytest.mark.parametrize("setting", [{"threads": 0}, {"threads": "2"}, {"threads": True}, {"cache_bytes": -1}])
def test_a_wrong_setting_is_refused(built_bundle: Path, setting) -> None:
    with pytest.raises(UgsepError, match=f"{next(iter(setting))} is .*; must be an integer >= [01]"):
        Ranker.from_bundle(built_bundle, **setting)


def test_a_user_index_out_of_range_is_refused(ranker: Ranker) -> None:
    user, items = tiny.user_and_items(4)
    with pytest.raises(UgsepError, match="user_index ranges from 0 to 1; must be in 0 to 0"):
        ranker.score_users(user, items, np.array([0, 0, 1, 0]))
    with pytest.raises(UgsepError, match="user_index ranges from -1 to 0"):
        ranker.score_users(user, items, np.array([0, 0, -1, 0]))
    with pytest.raises(UgsepError, match=r"user_index is int64\[3\]; give int64\[4\]"):
        ranker.score_users(user, items, np.zeros(3, np.int64))
    with pytest.raises(UgsepError, match="'user_index' is a list"):
        ranker.score_users(user, items, [0, 0, 0, 0])


def test_a_flipped_byte_is_found_before_loading(bundle: Path) -> None:
    manifest = Bundle.open(bundle).manifest
    engine = next(e for e in manifest.engines if e.built.side == "item")
    path = bundle / engine.directory / engine.built.files[-1]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UgsepError, match=r"sha256 .* but the manifest says"):
        Ranker.from_bundle(bundle)


def test_a_bundle_may_move_and_be_read_only(bundle: Path, tmp_path: Path) -> None:
    moved = bundle.rename(tmp_path / "moved")
    for path in moved.rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    ranker = Ranker.from_bundle(moved)
    assert np.isfinite(ranker.score(*tiny.user_and_items(3))["like"]).all()
    for path in moved.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)


def test_no_bundle_says_how_to_build_one(tmp_path: Path) -> None:
    with pytest.raises(UgsepError, match="not a bundle; build one"):
        Ranker.from_bundle(tmp_path)


def test_a_ranker_is_a_context_manager_and_a_failed_load_leaves_nothing_loaded(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[str] = []
    load = ranking.load_engine

    def recorded(directory: Path, manifest: Manifest, engine: Engine, *rest: Any) -> Any:
        runner = load(directory, manifest, engine, *rest)
        close = runner.close
        monkeypatch.setattr(runner, "close", lambda: (closed.append(engine.built.side), close()))
        return runner

    monkeypatch.setattr(ranking, "load_engine", recorded)
    with Ranker.from_bundle(bundle) as ranker:
        assert ranker.cache_info().users == 0
    assert closed == ["user", "item"]
    closed.clear()
    manifest = Bundle.open(bundle).manifest
    user, item = (engine_for(manifest, side) for side in ("user", "item"))
    unknown = dataclasses.replace(item, built=dataclasses.replace(item.built, backend="onnxrantime"))
    with pytest.raises(UgsepError, match="did you mean 'onnxruntime'"):
        Ranker.from_engines(bundle, manifest, user, unknown)
    assert closed == ["user"]
