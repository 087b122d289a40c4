"""Score recorded requests with one or two bundles and compare."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

from engines.backends.contract import Array
from engines.bundle.bundle import Bundle
from engines.bundle.manifest import engine_for
from engines.compile.compile import EnginePlan, compile_engine, load_built
from engines.serve.ranker import Ranker
from engines.serve.record.rows import SERVED
from engines.verify.checks import Check
from engines.verify.replay.drift import TaskDrift, drift_by_task
from engines.verify.replay.latency import ReplayLatency, measure_replay
from engines.verify.scores import Scores, full_engine_scores
from graphs.base.errors import UgsepError
from graphs.base.names import SIDES
from graphs.base.progress import Progress, ProgressCallback, silent
from graphs.base.scratch import scratch_folder
from quant.requests.readers import read_requests
from quant.requests.spec import InputSpec, Request, RequestSpec

__all__ = ["Bounds", "Replay", "replay"]

_TIMED = 100  # requests, drawn from all
_Score = Callable[[Request], dict[str, Array]]


@dataclass(frozen=True)
class Bounds:
    """What a replay must keep, for every task; ``k`` is of the top-k overlap, None checks nothing.

    ``drift`` bounds the largest absolute difference of logits, ``slowdown`` the p50 over the reference's with the
    user computed.
    """

    tau: float = 0.99
    overlap: float = 0.95
    k: int = 10
    drift: float | None = None
    slowdown: float | None = None


@dataclass(frozen=True)
class Replay:
    """What a replay found.

    ``reference`` and ``actual`` name what was compared, ``latency`` has the bundles by the same names.
    ``only_in_one`` are tasks that could not be compared.
    """

    reference: str
    actual: str
    requests: int
    rows: int
    tasks: Mapping[str, TaskDrift]
    only_in_one: Sequence[str]
    latency: Mapping[str, ReplayLatency]
    bounds: Bounds

    @property
    def slowdown(self) -> float | None:
        """The p50 over the reference's with the user computed; None if only one bundle was timed."""
        if self.reference not in self.latency:
            return None
        return self.latency[self.actual].computed.p50 / self.latency[self.reference].computed.p50

    @property
    def checks(self) -> list[Check]:
        """The bounds and whether they hold."""
        found = []
        for task, drift in self.tasks.items():
            agreed = drift.agreement
            found.append(Check(f"Kendall tau [{task}]", agreed.kendall_tau, self.bounds.tau, ">="))
            name = f"top-{self.bounds.k} overlap [{task}]"
            found.append(Check(name, agreed.top_k_overlap, self.bounds.overlap, ">="))
            if self.bounds.drift is not None:
                found.append(Check(f"max |score difference| [{task}]", agreed.max_abs, self.bounds.drift))
        if self.bounds.slowdown is not None and self.slowdown is not None:
            found.append(Check("p50 over the reference's, user computed", self.slowdown, self.bounds.slowdown))
        return found

    @property
    def passed(self) -> bool:
        """Whether every bound holds."""
        return all(check.passed for check in self.checks)

    def as_dict(self) -> dict[str, object]:
        """Return the findings for JSON."""
        return {
            "reference": self.reference,
            "actual": self.actual,
            "requests": self.requests,
            "rows": self.rows,
            "tasks": {task: drift.as_dict() for task, drift in self.tasks.items()},
            "only_in_one": list(self.only_in_one),
            "latency_ms": {name: latency.as_dict() for name, latency in self.latency.items()},
            "passed": self.passed,
            "targets": [check.as_dict() for check in self.checks],
        }


def replay(
    first: Path,
    second: Path | None,
    files: Sequence[Path],
    bounds: Bounds,
    limit: int | None = None,
    progress: ProgressCallback = silent,
) -> Replay:
    """Score requests with bundle ``first`` and compare bundle ``second`` with it, on the tasks that both have.

    Without ``second``, ``first`` is compared with the scores that were served when the requests were recorded, or
    with its own FP32 graph if the files hold none. Requests are read one at a time, at most ``limit`` of them; only
    their scores are kept.

    Raises:
        UgsepError: a damaged bundle, engines this machine cannot run, unusable requests, bundles that take different
            features or have no task in common.
    """
    bundles = [Bundle.open(path) for path in (first, second) if path is not None]
    spec = bundles[0].request_spec()
    with ExitStack() as loaded:
        if second is not None:
            _check_same_features(bundles[0], spec, bundles[1], bundles[1].request_spec())
            requests = read_requests(files, spec)
        else:
            served = RequestSpec(spec.user, spec.item, tuple(SERVED + task for task in spec.tasks))
            requests = read_requests(files, served)
        names = _names(bundles)
        rankers = {name: _loaded(bundle, loaded) for name, bundle in zip(names, bundles, strict=True)}
        requests = itertools.islice(requests, limit)
        start = next(requests)
        actual, score = names[-1], _ranker_score(names[-1], rankers[names[-1]])
        if second is not None:
            reference, expected = names[0], _ranker_score(names[0], rankers[names[0]])
        elif start.labels:
            reference, expected = "the scores served when recorded", _served_score
        else:
            reference, expected = "its FP32 graph", _fp32_score(bundles[0], loaded, progress)
        found = _score_all(itertools.chain([start], requests), expected, score, limit, progress)
        tasks = drift_by_task(found.ids, found.reference, found.actual, bounds.k)
        if not tasks:
            theirs, ours = (", ".join(sorted(s[0])) for s in (found.reference, found.actual))
            raise UgsepError(f"no task in common: {reference} has {theirs}, {actual} has {ours}; nothing to compare")
        latency = measure_replay(rankers, found.timed, progress)
    only = sorted(found.reference[0].keys() ^ found.actual[0].keys())
    rows = sum(len(next(iter(scores.values()))) for scores in found.actual)
    return Replay(reference, actual, len(found.ids), rows, tasks, only, latency, bounds)


@dataclass(frozen=True)
class _Scored:
    """The scores of all requests, and a sample of the requests to time."""

    ids: list[int]
    reference: Scores
    actual: Scores
    timed: list[Request]


def _score_all(
    requests: Iterable[Request], expected: _Score, score: _Score, limit: int | None, progress: ProgressCallback
) -> _Scored:
    found = _Scored([], [], [], [])
    draw = random.Random(0)
    for number, request in enumerate(requests):
        found.ids.append(request.request_id)
        found.actual.append(score(request))  # first: a Ranker says which feature of the request it refuses
        found.reference.append(expected(request))
        if len(found.timed) < _TIMED:
            found.timed.append(request)
        elif (slot := draw.randrange(number + 1)) < _TIMED:
            found.timed[slot] = request
        progress(Progress("replay", number + 1, limit))
    progress(Progress("replay", len(found.ids), len(found.ids)))
    return found


def _names(bundles: Sequence[Bundle]) -> list[str]:
    """Return a name of each bundle that tells it from the other: its path and the start of its digest."""
    names = [f"{bundle.path} ({bundle.manifest.short_digest})" for bundle in bundles]
    return names if len(set(names)) == len(names) else [names[0], f"{names[1]} again"]


def _loaded(bundle: Bundle, loaded: ExitStack) -> Ranker:
    engines = [engine_for(bundle.manifest, side) for side in SIDES]
    return loaded.enter_context(Ranker.from_engines(bundle.path, bundle.manifest, engines[0], engines[1]))


def _ranker_score(name: str, ranker: Ranker) -> _Score:
    def score(request: Request) -> dict[str, Array]:
        try:
            return ranker.score(request.user, request.items)
        except UgsepError as error:
            raise UgsepError(f"{name} refuses request {request.request_id}: {error}") from error

    return score


def _served_score(request: Request) -> dict[str, Array]:
    return {name.removeprefix(SERVED): values for name, values in request.labels.items()}


def _fp32_score(bundle: Bundle, loaded: ExitStack, progress: ProgressCallback) -> _Score:
    folder = loaded.enter_context(scratch_folder(".ugsep-reference-"))
    plan = EnginePlan("full", "onnxruntime", "fp32")
    built = compile_engine(bundle.recipe, plan, bundle.onnx("full"), folder, None, progress)
    full = loaded.enter_context(closing(load_built(built, folder)))
    return lambda request: full_engine_scores(full, [request])[0]


def _check_same_features(a: Bundle, first: RequestSpec, b: Bundle, second: RequestSpec) -> None:
    """Reject bundles that cannot score the same requests.

    Raises:
        UgsepError: with the first feature that differs.
    """
    described = [dict(_described(spec)) for spec in (first, second)]
    for name in sorted(described[0].keys() | described[1].keys()):
        here, there = (features.get(name, "not a feature") for features in described)
        if here != there:
            raise UgsepError(
                f"the bundles take different features: '{name}' is {here} of {a.path} and {there} of {b.path}; "
                "replay each on requests of its own"
            )


def _described(spec: RequestSpec) -> Iterator[tuple[str, str]]:
    def kind(wanted: InputSpec) -> str:
        return f"{wanted.dtype}{list(('rows', *wanted.row_shape))}".replace("'", "")

    yield from ((wanted.name, f"a user feature {kind(wanted)}") for wanted in spec.user)
    yield from ((wanted.name, f"an item feature {kind(wanted)}") for wanted in spec.item)
