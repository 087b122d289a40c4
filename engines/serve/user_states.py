"""The states of users: from the cache, from another thread that computes them, or from the user engine."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from engines.backends.checks import check_feeds
from engines.backends.contract import Array
from engines.serve.deadlines import check_deadline
from engines.serve.engine_pair import EnginePair
from engines.serve.state_cache import Claims, State, StateCache, User, await_state
from graphs.base.errors import UgsepError

__all__ = ["Resolved", "Wanted", "find_state", "find_states", "keyed_users"]

_STAGE = "the user graph could run"


@dataclass(frozen=True)
class Wanted:
    """A user whose state is wanted until a time of ``time.monotonic()``, or as long as it takes if None."""

    user: User
    until: float | None


@dataclass(frozen=True)
class Resolved:
    """States and errors by key, the keys that were missing from the cache, and the seconds until all were here."""

    states: dict[bytes, State]
    errors: dict[bytes, UgsepError]
    missed: frozenset[bytes]
    seconds: float


def keyed_users(pair: EnginePair, users: Mapping[str, Array], one_call: bool) -> list[tuple[bytes, User]]:
    """Return each user alone, one row per feature, with the key of its state; values are not checked.

    ``one_call``: the users must fit into one call of the engines.

    Raises:
        UgsepError: a missing or unknown feature, one that is not an array of numbers, no rows, or differing numbers
            of rows, or too many.
    """
    arrays = pair.user_checks.in_order(users)
    counts = {value.shape[0] if value.ndim else 0 for value in arrays}
    if len(counts) != 1 or 0 in counts:
        pair.user_checks.rows(users)  # raises, with the feature
    (count,) = counts
    if one_call:
        pair.check_count(count)
    names = pair.user_checks.names
    if count == 1:
        return [_own(names, arrays)]
    return [_own(names, [value[row : row + 1] for value in arrays]) for row in range(count)]


def _own(names: Sequence[str], arrays: Sequence[Array]) -> tuple[bytes, User]:
    """Return a digest of one user's features (dtypes, shapes and bytes) and a copy of just these bytes.

    The state is computed from the copy: a caller that changes its arrays meanwhile would file another user's state
    under this key.
    """
    digest = hashlib.blake2b(digest_size=16)
    own: dict[str, Array] = {}
    for name, value in zip(names, arrays, strict=True):
        try:
            data = value.tobytes()
        except MemoryError as error:  # a broadcast view may claim any size
            raise UgsepError(f"user feature '{name}' has shape {list(value.shape)}; it fits no memory") from error
        digest.update(f"{value.dtype.str}{value.shape}".encode() + data)
        own[name] = np.ndarray(value.shape, value.dtype, data)
    return digest.digest(), own


def find_state(pair: EnginePair, cache: StateCache, user: User, deadline: float | None) -> tuple[State, bool]:
    """Return one user's state and whether it was cached.

    Raises:
        UgsepError: features that the user engine refuses, or several users.
        DeadlineExceeded: before the user graph, or while another thread computes the same user.
    """
    key, own = _own(pair.user_checks.names, pair.user_checks.in_order(user))
    return cache.get(key, own, lambda: _compute_one(pair, own, deadline), deadline)


def find_states(
    pair: EnginePair, cache: StateCache, wanted: Mapping[bytes, Wanted], lookups: Iterable[bytes]
) -> Resolved:
    """Return the states of many users; those missing from the cache run in as few user calls as the engine allows.

    ``lookups`` has the keys of ``wanted`` as often as requests ask for them. An error belongs to one user, and is
    returned.
    """
    claims = cache.claim(lookups)
    if not claims.mine and not claims.theirs:
        return Resolved(claims.found, {}, frozenset(), 0.0)
    started = time.perf_counter()
    states, errors = dict(claims.found), dict[bytes, UgsepError]()
    try:
        for chunk in _chunks(list(claims.mine), pair.max_users if pair.joins_users else 1):
            _compute_chunk(pair, cache, claims, wanted, chunk, states, errors)
    finally:
        cache.release(claims)
    for key, pending in claims.theirs.items():
        user, until = wanted[key].user, wanted[key].until
        try:
            state = await_state(pending, until)
            states[key] = find_state(pair, cache, user, until)[0] if state is None else state
        except UgsepError as error:
            errors[key] = error
    return Resolved(states, errors, frozenset(claims.mine), time.perf_counter() - started)


def _compute_chunk(
    pair: EnginePair,
    cache: StateCache,
    claims: Claims,
    wanted: Mapping[bytes, Wanted],
    keys: Sequence[bytes],
    states: dict[bytes, State],
    errors: dict[bytes, UgsepError],
) -> None:
    """Run the user engine for one call's keys; each becomes a state or an error."""
    feeds: dict[bytes, User] = {}
    for key in keys:
        try:
            check_deadline(wanted[key].until, _STAGE)
            _check_one(pair, wanted[key].user)
            feeds[key] = check_feeds(pair.user_inputs, wanted[key].user)
        except UgsepError as error:
            errors[key] = error
    for key, state in _run_together(pair, feeds).items():
        if isinstance(state, UgsepError):
            errors[key] = state
        else:
            cache.keep(claims, key, wanted[key].user, state)
            states[key] = state


def _run_together(pair: EnginePair, feeds: Mapping[bytes, User]) -> dict[bytes, State | UgsepError]:
    """Return each user's state from one call; if it fails, from a call each, so that others are not affected."""
    users = list(feeds.values())
    if not users:
        return {}
    try:
        if len(users) == 1:
            return {key: _read_only(pair.run_user(user)) for key, user in feeds.items()}
        joined = {name: np.concatenate([user[name] for user in users]) for name in users[0]}
        out = pair.run_user(joined)
    except UgsepError as error:
        if len(users) == 1:
            return dict.fromkeys(feeds, error)
        return {key: alone for one in feeds for key, alone in _run_together(pair, {one: feeds[one]}).items()}
    # Copies: a view would keep the states of the whole call in memory as long as one of its users is cached.
    return {
        key: _read_only({n: v[row : row + 1].copy() for n, v in out.items() if isinstance(v, np.ndarray)})
        for row, key in enumerate(feeds)
    }


def _compute_one(pair: EnginePair, user: User, deadline: float | None) -> State:
    _check_one(pair, user)
    check_deadline(deadline, _STAGE)
    return _read_only(pair.run_user(user))


def _check_one(pair: EnginePair, user: User) -> None:
    rows = pair.user_checks.rows(user)
    if rows != 1:
        raise UgsepError(f"user features have {rows} rows and no user_index; give one user, or each candidate's row")


def _read_only(state: State) -> State:
    for value in state.values():
        if isinstance(value, np.ndarray):
            value.flags.writeable = False  # writing to it would change later scores
    return state


def _chunks(keys: list[bytes], most: int) -> list[list[bytes]]:
    """Cut keys into lists of at most ``most``; 0 for no limit."""
    size = most or max(1, len(keys))
    return [keys[start : start + size] for start in range(0, len(keys), size)]
