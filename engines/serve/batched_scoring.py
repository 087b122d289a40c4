"""Score many requests at once: cached states, one user call for the other users, one item call for all candidates."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from engines.backends.checks import check_feeds
from engines.backends.contract import Array
from engines.serve.deadlines import check_deadline, later
from engines.serve.engine_pair import EnginePair, first_bad_score
from engines.serve.score_request import Scored, ScoreRequest
from engines.serve.state_cache import State, StateCache, User
from engines.serve.user_states import Resolved, Wanted, find_state, find_states, keyed_users
from graphs.base.errors import UgsepError
from graphs.base.names import USER_INDEX

__all__ = ["score_requests"]

Result = Scored | UgsepError


@dataclass(frozen=True)
class _Checked:
    """A request whose items and index are sound: ``users`` by row, with keys; ``index`` is each candidate's row."""

    place: int
    items: Mapping[str, Array]
    candidates: int
    users: list[tuple[bytes, User]]
    index: Array | None
    deadline: float | None

    @property
    def keys(self) -> list[bytes]:
        """The keys of the users' states."""
        return [key for key, _ in self.users]


def score_requests(pair: EnginePair, cache: StateCache, requests: Sequence[ScoreRequest]) -> list[Result]:
    """Return each request's scores, or its own error.

    Requests share item calls up to the engine's limits. They run one by one if the engine takes one user per call, or
    if both engines share a device: there, joining cached states would copy all of them through the host.
    """
    results: dict[int, Result] = {}
    if not pair.joins_users or (len(requests) == 1 and requests[0].user_index is None):
        for place, request in enumerate(requests):
            try:
                results[place] = _score_alone(pair, cache, request)
            except UgsepError as error:
                results[place] = error
    else:
        checked = []
        for place, request in enumerate(requests):
            try:
                checked.append(_check(pair, place, request))
            except UgsepError as error:
                results[place] = error
        _score_checked(pair, cache, checked, results)
    return [results[place] for place in range(len(requests))]


def _score_alone(pair: EnginePair, cache: StateCache, request: ScoreRequest) -> Scored:
    rows = pair.check_items(request.items)
    users, index, hit = 1, pair.one_user_index(rows), False
    started = time.perf_counter()
    if request.user_index is not None:
        users = len(keyed_users(pair, request.user, one_call=True))
        given = pair.check_index(request.user_index, rows, users)
        index = index if users == 1 else {USER_INDEX: given}
    if users == 1:
        state, hit = find_state(pair, cache, request.user, request.deadline)
    else:  # not cached: the rows of a state on a device cannot be taken apart
        pair.user_checks.rows(request.user)
        check_deadline(request.deadline, "the user graph could run")
        state = pair.run_user(request.user)
    found = time.perf_counter()
    check_deadline(request.deadline, "the item graph could run")
    scores = pair.run_item(request.items, state, index)
    ended = time.perf_counter()
    wrong = first_bad_score(scores)
    if wrong is not None:
        raise wrong
    return Scored(scores, int(hit), users - hit, 0.0 if hit else found - started, ended - found, users)


def _check(pair: EnginePair, place: int, request: ScoreRequest) -> _Checked:
    """Check all but the values of the users' features, which a cache hit shows to be sound."""
    check_deadline(request.deadline, "its batch could run")
    candidates = pair.check_items(request.items)
    items = check_feeds(pair.item_inputs, request.items)  # dtypes too, before they are joined with other requests'
    users = keyed_users(pair, request.user, one_call=True)
    count = len(users)
    index = request.user_index
    if index is not None:
        index = pair.check_index(index, candidates, count)
    elif count > 1:
        raise UgsepError(f"user features have {count} rows and no user_index; give one user, or each candidate's row")
    return _Checked(place, items, candidates, users, index, request.deadline)


def _score_checked(
    pair: EnginePair, cache: StateCache, checked: Sequence[_Checked], results: dict[int, Result]
) -> None:
    wanted: dict[bytes, Wanted] = {}
    for request in checked:
        for key, user in request.users:
            until = later(wanted[key].until, request.deadline) if key in wanted else request.deadline
            wanted[key] = Wanted(user, until)
    resolved = find_states(pair, cache, wanted, (key for request in checked for key in request.keys))
    unseen = set(resolved.missed)  # the first request with a user missed it, later ones found it
    waiting: deque[tuple[_Checked, int]] = deque()
    for request in checked:
        misses = len(unseen & set(request.keys))
        unseen -= set(request.keys)
        error = next((resolved.errors[key] for key in request.keys if key in resolved.errors), None)
        if error is not None:
            results[request.place] = error
        else:
            waiting.append((request, misses))
    while waiting:
        chunk = _next_chunk(pair, waiting, results)
        if chunk:
            _score_chunk(pair, chunk, resolved, results)


def _next_chunk(
    pair: EnginePair, waiting: deque[tuple[_Checked, int]], results: dict[int, Result]
) -> list[tuple[_Checked, int]]:
    """Take the next requests that fit into one item call; those whose deadline has passed become errors."""
    chunk: list[tuple[_Checked, int]] = []
    keys: set[bytes] = set()
    candidates = 0
    while waiting:
        request, _ = waiting[0]
        joined = keys | set(request.keys)
        most = candidates + request.candidates
        if chunk and (_exceeds(len(joined), pair.max_users) or _exceeds(most, pair.max_candidates)):
            break
        taken = waiting.popleft()
        try:
            check_deadline(request.deadline, "the item graph could run")
        except UgsepError as error:
            results[request.place] = error
            continue
        chunk.append(taken)
        keys, candidates = joined, most
    return chunk


def _exceeds(rows: int, most: int) -> bool:
    return 0 < most < rows


def _score_chunk(
    pair: EnginePair, chunk: Sequence[tuple[_Checked, int]], resolved: Resolved, results: dict[int, Result]
) -> None:
    """Run one item call; if the engine refuses it, a call per request finds the one that it refuses."""
    keys = list(dict.fromkeys(key for request, _ in chunk for key in request.keys))
    started = time.perf_counter()
    try:
        scores = _run_joined(pair, [request for request, _ in chunk], keys, resolved.states)
    except UgsepError as error:
        if len(chunk) == 1:
            results[chunk[0][0].place] = error
        else:
            for one in chunk:
                _score_chunk(pair, [one], resolved, results)
        return
    seconds = time.perf_counter() - started
    sound = first_bad_score(scores) is None
    start = 0
    for request, misses in chunk:
        part = {task: logits[start : start + request.candidates] for task, logits in scores.items()}
        start += request.candidates
        wrong = None if sound else first_bad_score(part)
        results[request.place] = wrong or Scored(
            part, len(request.keys) - misses, misses, resolved.seconds, seconds, len(keys)
        )


def _run_joined(
    pair: EnginePair, chunk: Sequence[_Checked], keys: Sequence[bytes], states: Mapping[bytes, State]
) -> dict[str, Array]:
    items = chunk[0].items
    if len(chunk) > 1:
        items = {name: np.concatenate([request.items[name] for request in chunk]) for name in items}
    if len(keys) == 1:  # the engine may have a faster graph for one user
        return pair.run_item(items, states[keys[0]], pair.one_user_index(sum(r.candidates for r in chunk)))
    row = {key: number for number, key in enumerate(keys)}
    index = np.concatenate([_rows_of_candidates(request, row) for request in chunk])
    state: State = {name: np.concatenate([np.asarray(states[key][name]) for key in keys]) for name in states[keys[0]]}
    return pair.run_item(items, state, {USER_INDEX: index})


def _rows_of_candidates(request: _Checked, row: Mapping[bytes, int]) -> Array:
    rows = np.array([row[key] for key in request.keys], np.int64)
    return np.full(request.candidates, rows[0]) if request.index is None else rows[request.index]
