"""The campaign: one request changed in one way, through one call; the ranker must still be sound afterwards."""

from __future__ import annotations

import random
import threading
from collections import ChainMap, UserDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from benchmarks.reliability.contract import Campaign, Outcome
from benchmarks.reliability.fuzz.inputs import make_bundle
from benchmarks.reliability.fuzz.programs import PROGRAMS, import_all
from benchmarks.reliability.fuzz.worker import Worker
from benchmarks.reliability.score.calls import CALLS, Reference, Request, call
from benchmarks.reliability.score.features import OTHER_VALUES, SAME_VALUES, WRONG, random_rows
from engines import Ranker
from engines.backends.contract import Array
from engines.bundle.manifest import read_manifest
from graphs.base.errors import UgsepError

__all__ = ["CAMPAIGN"]

BUILD_SECONDS = 300.0
#: Between calls of the same engines: another variant of the engine and other batches sum in another order.
SAME_ENGINES = 1e-4
#: Of a probability against FP32: the gate of the bundle's recipe.
QUANTIZED = 0.02
CACHE_BYTES = 40_000  # of about 60 users: entries are evicted too


@dataclass(frozen=True)
class Workspace:
    """The ranker under test, what it must agree with, and the rows of the tables."""

    ranker: Ranker
    reference: Reference
    tables: Mapping[str, int]


def prepare(folder: Path) -> Workspace:
    """Build a small bundle and load it twice."""
    import_all()
    with Worker(PROGRAMS, folder / "making", BUILD_SECONDS) as maker:
        _, bundle = make_bundle(folder, maker)
    ranker = Ranker.from_bundle(bundle, cache_bytes=CACHE_BYTES)
    return Workspace(ranker, Reference.of(Path(bundle)), read_manifest(Path(bundle)).vocabularies)


def close(workspace: Workspace) -> None:
    """Release the engines."""
    workspace.ranker.close()
    workspace.reference.ranker.close()


def attempt(workspace: Workspace, index: int, rng: random.Random) -> Outcome:
    """Make one changed call, then a plain one of the same request."""
    kinds: tuple[Callable[[Workspace, random.Random], Outcome], ...] = (
        *(
            _same_values,
            _wrong,
            _other_values,
            _wrong,
            _mapping,
            _wrong_index,
            _same_values,
            _changed_meanwhile,
            _alias,
        ),
    )
    return kinds[index % len(kinds)](workspace, rng)


def _same_values(workspace: Workspace, rng: random.Random) -> Outcome:
    how, plain = _request(workspace, rng)
    kind = rng.choice(list(SAME_VALUES))
    return _judged(workspace, "same values", kind, how, plain, _changed(plain, SAME_VALUES[kind], rng))


def _other_values(workspace: Workspace, rng: random.Random) -> Outcome:
    how, plain = _request(workspace, rng)
    kind = rng.choice(list(OTHER_VALUES))
    return _judged(workspace, "other values", kind, how, plain, _changed(plain, OTHER_VALUES[kind], rng))


def _wrong(workspace: Workspace, rng: random.Random) -> Outcome:
    how, plain = _request(workspace, rng)
    kind = rng.choice(list(WRONG))
    given = _changed(plain, WRONG[kind], rng)
    return _judged(workspace, "what must be refused", kind, how, plain, given, must_refuse=True)


def _wrong_index(workspace: Workspace, rng: random.Random) -> Outcome:
    """An index that is wrong, or another array of the same values."""
    _, plain = _request(workspace, rng, several=True)
    same = rng.random() < 0.5
    table = SAME_VALUES if same else WRONG
    kind = rng.choice(list(table))
    given = replace(plain, index=table[kind](plain.index, rng))
    how = rng.choice([name for name, several in CALLS.items() if several])
    if given.index is None:
        how = "score_users"  # the others take a request without an index
    return _judged(workspace, "user_index", kind, how, plain, given, must_refuse=not same)


def _mapping(workspace: Workspace, rng: random.Random) -> Outcome:
    """Features in other mappings, with names missing, unknown or odd."""
    how, plain = _request(workspace, rng)
    side = rng.choice(("users", "items"))
    sound: dict[str, Array] = dict(getattr(plain, side))
    name = rng.choice(list(sound))
    lost = {key: value for key, value in sound.items() if key != name}
    made: dict[str, tuple[bool, Any]] = {
        "MappingProxyType": (False, MappingProxyType(sound)),
        "ChainMap": (False, ChainMap({name: sound[name]}, lost)),
        "UserDict": (False, UserDict(sound)),
        "another order": (False, dict(reversed(sound.items()))),
        "a name missing": (True, lost),
        "a name unknown": (True, {**sound, "nothing": sound[name]}),
        "a name of another type": (True, {**lost, 5: sound[name]}),
        "a name of bytes": (True, {**lost, name.encode(): sound[name]}),
        "a name in upper case": (True, {**lost, name.upper(): sound[name]}),
        "a list of pairs": (True, list(sound.items())),
        "None": (True, None),
        "nothing": (True, {}),
        "a state's name": (True, {**sound, "user_index": np.zeros(1, np.int64)}),
    }
    kind = rng.choice(list(made))
    wrong, mapping = made[kind]
    given = replace(plain, users=mapping) if side == "users" else replace(plain, items=mapping)
    return _judged(workspace, "mappings", kind, how, plain, given, must_refuse=wrong)


def _changed_meanwhile(workspace: Workspace, rng: random.Random) -> Outcome:
    """Another thread writes other values into the arrays while they are scored; both must score right afterwards.

    The answer of the call itself may be that of any mixture, as long as it is an answer or a refusal.
    """
    how, plain = _request(workspace, rng)
    other = Request(
        random_rows(workspace.ranker.user_inputs, workspace.tables, len(next(iter(plain.users.values()))), rng),
        random_rows(workspace.ranker.item_inputs, workspace.tables, len(plain.index), rng),
        plain.index,
    )
    given, done = plain.copy(), threading.Event()

    def write() -> None:
        while not done.is_set():
            for source in (other, plain):
                for name, value in (*source.users.items(), *source.items.items()):
                    (given.users if name in given.users else given.items)[name][...] = value

    writer = threading.Thread(target=write)
    writer.start()
    kind = "answered"
    try:
        for _ in range(3):
            try:
                call(workspace.ranker, how, given)
            except UgsepError:
                kind = "refused"
    except Exception as error:
        return _defect("changed during the call", f"{type(error).__name__}", how, str(error))
    finally:
        done.set()
        writer.join()
    for request in (plain, other):
        wrong = _wrong_scores(workspace, request, call(workspace.ranker, how, request.copy()))
        if wrong:
            return _defect("changed during the call", "the cache is poisoned", how, wrong)
    return Outcome("changed during the call", "ok", kind)


def _alias(workspace: Workspace, rng: random.Random) -> Outcome:
    """What is returned shares no memory with the inputs, with other results or with the cache."""
    how, plain = _request(workspace, rng)
    given = plain.copy()
    inputs = [*given.users.values(), *given.items.values(), given.index]
    results = [call(workspace.ranker, how, given) for _ in range(2)]
    states = [
        workspace.ranker.user_state({n: v[:1] for n, v in given.users.items()}),
        workspace.ranker.warm(given.users)[0],
    ]
    recent = [dict(user) for user in workspace.ranker.recent_users(3)]
    returned = [array for found in (*results, *states, *recent) for array in found.values()]
    for at, array in enumerate(returned):
        if any(np.shares_memory(array, given_array) for given_array in inputs):
            return _defect("shared memory", "with an input", how, f"array {at}")
        if any(np.shares_memory(array, later) for later in returned[at + 1 :]):
            return _defect("shared memory", "with another result", how, f"array {at}")
    for array in (*returned, *inputs):
        if array.flags.writeable:
            array.view(np.uint8 if array.ndim else array.dtype)[...] = 1
    wrong = _wrong_scores(workspace, plain, call(workspace.ranker, how, plain.copy()))
    return _defect("shared memory", "with the cache", how, wrong) if wrong else Outcome("shared memory", "ok")


def _request(workspace: Workspace, rng: random.Random, several: bool | None = None) -> tuple[str, Request]:
    """Return a call and a request that it takes; every other one has a user that was seen before."""
    how = rng.choice([name for name, takes in CALLS.items() if several is None or takes == several])
    ranker = workspace.ranker
    users = rng.randint(1, ranker.max_users or 4) if CALLS[how] else 1
    candidates = rng.choice((1, 2, 3, 9, 17, ranker.max_candidates))
    seen = random.Random(rng.randrange(40)) if rng.random() < 0.5 else rng
    index = np.array([rng.randrange(users) for _ in range(candidates)], np.int64)
    return how, Request(
        random_rows(ranker.user_inputs, workspace.tables, users, seen),
        random_rows(ranker.item_inputs, workspace.tables, candidates, rng),
        index,
    )


def _changed(plain: Request, change: Callable[[Array, random.Random], Any], rng: random.Random) -> Request:
    """Return the request with one feature replaced, and write the values it then stands for into the plain one."""
    side = rng.choice(("users", "items"))
    features: Mapping[str, Array] = getattr(plain, side)
    name = rng.choice(list(features))
    changed = {**features, name: change(features[name], rng)}
    return replace(plain, users=changed) if side == "users" else replace(plain, items=changed)


def _judged(
    workspace: Workspace,
    target: str,
    kind: str,
    how: str,
    plain: Request,
    given: Request,
    must_refuse: bool = False,
) -> Outcome:
    """Score what is given, then the plain request, which a refusal before must not have spoilt."""
    result = "ok"
    try:
        scores = call(workspace.ranker, how, given)
    except UgsepError as error:
        result = "refused"
        if not str(error) or "\n" in str(error) or len(str(error)) > 1000:
            return _defect(target, f"{kind}: not a line", how, repr(str(error)[:200]))
    except Exception as error:
        return _defect(target, f"{kind}: {type(error).__name__}", how, str(error))
    else:
        if must_refuse and not _is_harmless(plain, given):
            return _defect(target, f"{kind}: scored", how, "a score instead of a refusal")
        wrong = _wrong_scores(workspace, plain, scores)
        if wrong:
            return _defect(target, f"{kind}: wrong score", how, wrong)
    wrong = _wrong_scores(workspace, plain, call(workspace.ranker, how, plain.copy()))
    if wrong:
        return _defect(target, f"{kind}: wrong score afterwards", how, wrong)
    return Outcome(target, "ok" if result == "ok" else "refused", kind)


def _is_harmless(plain: Request, given: Request) -> bool:
    """Return whether a change that was to be wrong left the values as they were."""
    pairs = [(plain.index, given.index)]
    for one, other in ((plain.users, given.users), (plain.items, given.items)):
        if not isinstance(other, Mapping) or one.keys() != other.keys():
            return False
        pairs += [(one[name], other[name]) for name in one]
    return all(type(b) is np.ndarray and a.dtype == b.dtype and np.array_equal(a, b) for a, b in pairs)


def _wrong_scores(workspace: Workspace, request: Request, scores: Mapping[str, Array]) -> str:
    """Return how far scores are from those of the engines and of the FP32 model, or '' if they agree."""
    engines, fp32 = workspace.reference.engines(request), workspace.reference.fp32(request)
    for task, expected in engines.items():
        got = scores.get(task)
        if type(got) is not np.ndarray or got.dtype != np.float32 or got.shape != expected.shape:
            return f"task '{task}' is {type(got).__name__} {getattr(got, 'dtype', '')} {getattr(got, 'shape', '')}"
        error = float(np.abs(got - expected).max())
        if not error <= SAME_ENGINES * max(1.0, float(np.abs(expected).max())):
            return f"task '{task}' is off by {error:.3g}"
        change = float(np.abs(1 / (1 + np.exp(-got)) - 1 / (1 + np.exp(-fp32[task]))).max())
        if not change <= QUANTIZED:
            return f"task '{task}': probability off by {change:.3g} from FP32"
    return ""


def _defect(target: str, kind: str, how: str, detail: str) -> Outcome:
    return Outcome(target, "defect", kind, f"{how}: {ascii(detail)[1:-1][:300]}")


CAMPAIGN = Campaign(
    name="score",
    goal=(
        "Calls of the ranker with any array get the scores of the FP32 model or a refusal; results share no memory "
        "with inputs, other results or the cache, and arrays that change during a call spoil no later one."
    ),
    prepare=prepare,
    attempt=attempt,
    short_tries=450,
    long_tries=10_800,
    close=close,
)
