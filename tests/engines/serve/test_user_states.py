"""States ahead of requests: warmed, listed, and taken over by the next ranker of the same user engine."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from engines import Ranker
from engines.bundle.manifest import engine_for, read_manifest
from graphs.base.errors import UgsepError
from tests import tiny
from tests.engines.serve import exact_engines as exact
from tests.manifests import edit_raw


def test_users_are_warmed_in_as_few_calls_as_fit_and_found_later() -> None:
    ranker, user_engine, _ = exact.exact_ranker()
    ranker.user_state(exact.users(3))
    user_engine.calls.clear()
    warmed = ranker.warm(exact.users(0, 1, 2, 3, 4, 5, 1))
    assert user_engine.calls == [4, 1]
    np.testing.assert_array_equal(warmed.states["state"], exact.states(exact.users(0, 1, 2, 3, 4, 5, 1)))
    states, hits, misses, seconds = warmed
    assert (hits, misses, len(states["state"])) == (2, 5, 7)
    assert seconds > 0
    again = ranker.warm(exact.users(5))
    assert again[1:] == (1, 0, 0)
    again.states["state"][:] = 0  # the caller's own, not the cache's
    got = ranker.score(exact.users(5), exact.items(3))["click"]
    np.testing.assert_array_equal(got, exact.expected(exact.users(5), exact.items(3)))
    assert user_engine.calls == [4, 1]


def test_a_user_that_cannot_be_warmed_does_not_keep_the_others_from_it() -> None:
    ranker, _, _ = exact.exact_ranker()
    given = exact.users(0, 1, 2)
    given["profile"][1] = np.nan
    with pytest.raises(UgsepError, match="'profile' has a NaN"):
        ranker.warm(given)
    assert ranker.cache_info().users == 2
    for wrong, message in (
        ({"user_id": np.zeros(2, np.int64), "profile": np.zeros((1, 3), np.float32)}, "rows, others have"),
        ({"user_id": np.zeros(0, np.int64), "profile": np.zeros((0, 3), np.float32)}, "has no rows"),
        ({"user_id": np.array(1), "profile": np.array(1)}, "has no rows"),
        ({"user_id": np.zeros(1, np.int64)}, "'profile' is missing"),
        ([exact.users(1)], "give a mapping"),
    ):
        with pytest.raises(UgsepError, match=message):
            ranker.warm(wrong)  # type: ignore[arg-type]  # what a client may send
    assert ranker.cache_info().users == 2


def test_recent_users_can_warm_another_ranker() -> None:
    old, _, _ = exact.exact_ranker()
    for number in (1, 2, 3, 1):
        old.score(exact.users(number), exact.items(2))
    recent = old.recent_users(2)
    assert [int(user["user_id"][0]) for user in recent] == [1, 3]
    assert old.recent_users(0) == []
    assert len(old.recent_users(99)) == 3
    new, _, _ = exact.exact_ranker()
    new.warm({name: np.concatenate([user[name] for user in recent]) for name in recent[0]})
    for user in recent:
        new.score(user, exact.items(2))
    assert (new.cache_info().hits, new.cache_info().misses) == (2, 2)


def test_states_move_only_between_rankers_of_the_same_user_engine() -> None:
    old, _, _ = exact.exact_ranker(digest="a")
    old.warm(exact.users(1, 2, 3))
    for digest in ("b", ""):
        assert exact.exact_ranker(digest=digest)[0].adopt_states(old) == 0
    unknown, _, _ = exact.exact_ranker()
    assert exact.exact_ranker()[0].adopt_states(unknown) == 0
    new, user_engine, _ = exact.exact_ranker(digest="a")
    assert new.adopt_states(old) == 3
    old.close()
    got = new.score(exact.users(2), exact.items(3))["click"]
    np.testing.assert_array_equal(got, exact.expected(exact.users(2), exact.items(3)))
    assert (user_engine.calls, new.cache_info().misses) == ([], 0)


def test_the_digest_is_that_of_the_user_engine_alone(built_bundle: Path, bundle: Path) -> None:
    manifest = read_manifest(built_bundle)
    user, item = engine_for(manifest, "user"), engine_for(manifest, "item")
    with Ranker.from_bundle(built_bundle) as here, Ranker.from_bundle(bundle) as copied:
        assert len(here.user_engine_digest) == 64
        assert here.user_engine_digest == copied.user_engine_digest
        given, items = tiny.user_and_items(4)
        want = here.score(given, items)["like"]
        assert copied.adopt_states(here) == 1
        np.testing.assert_array_equal(copied.score(given, items)["like"], want)
        assert copied.cache_info().misses == 0
        threads = dataclasses.replace(user.built, session={**user.built.session, "intra_op_num_threads": 2})
        other = dataclasses.replace(user, built=threads)
        with Ranker.from_engines(built_bundle, manifest, other, item) as different:
            assert different.user_engine_digest not in ("", here.user_engine_digest)
    path = f"{user.directory}/{user.built.files[0]}"
    edit_raw(bundle, lambda raw: raw["files"][path].update(sha256="0" * 64))
    with Ranker.from_engines(bundle, read_manifest(bundle), user, item) as changed:
        assert changed.user_engine_digest != here.user_engine_digest
    with Ranker.from_engines(bundle, dataclasses.replace(manifest, files={}), user, item) as unknown:
        assert unknown.user_engine_digest == ""


@pytest.mark.parametrize("batched", [False, True])
def test_a_caller_that_reuses_its_arrays_changes_no_state(batched: bool) -> None:
    """A state of other features under a user's key is a wrong score for all later requests of that user."""
    ranker, user_engine, _ = exact.exact_ranker()
    given = exact.users(3)

    def reused(feeds: Mapping[str, np.ndarray]) -> None:
        for name, value in exact.users(4).items():
            given[name][:] = value  # as a caller that fills its buffers for the next request

    user_engine.before = reused
    ranker.warm(given) if batched else ranker.user_state(given)
    got = ranker.score(exact.users(3), exact.items(3))["click"]
    np.testing.assert_array_equal(got, exact.expected(exact.users(3), exact.items(3)))
    (kept,) = ranker.recent_users(5)
    np.testing.assert_array_equal(kept["user_id"], exact.users(3)["user_id"])


def test_a_view_that_claims_a_huge_size_is_one_line() -> None:
    ranker, _, _ = exact.exact_ranker()
    given = exact.users(3)
    given["profile"] = np.broadcast_to(given["profile"][:, :1], (1, 1 << 46))
    with pytest.raises(UgsepError, match="'profile' has shape"):
        ranker.user_state(given)


def test_score_users_takes_no_missing_index() -> None:
    ranker, _, _ = exact.exact_ranker()
    with pytest.raises(UgsepError, match="user_index is None"):
        ranker.score_users(exact.users(3), exact.items(3), None)


def test_masked_arrays_and_ids_in_a_subclass_are_one_line(built_bundle: Path) -> None:
    user, items = tiny.user_and_items(3, seed=5)
    name = next(name for name, value in items.items() if value.dtype == np.int64)
    with Ranker.from_bundle(built_bundle) as ranker:
        with pytest.raises(UgsepError, match="is a MaskedArray; give a NumPy array"):
            ranker.score(user, {**items, name: np.ma.masked_array(items[name])})
        wrong = items[name].reshape(len(items[name]), -1).view(np.matrix).copy()
        wrong[0, 0] = 1 << 40
        with pytest.raises(UgsepError, match=f"has id {1 << 40}"):
            ranker.score(user, {**items, name: wrong})
