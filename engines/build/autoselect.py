"""``backend: auto``: try every engine this machine can run, and pick the fastest per side that keeps parity."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engines.backends.built_engine import BuiltEngine
from engines.backends.contract import Array, Runner
from engines.backends.table import backend_names, find_backend
from engines.compile.compile import EnginePlan, compile_engine, load_built
from engines.measure.interleave import interleaved
from engines.recipes.recipe import Gates, Recipe
from engines.serve.ranker import Ranker
from engines.verify import checks
from engines.verify.latency import ROUNDS
from engines.verify.scores import Scores, engine_scores
from graphs.base.errors import UgsepError
from graphs.base.names import SIDES, USER_INDEX, GraphSide, Side
from graphs.base.progress import Progress, ProgressCallback, silent
from quant.requests.spec import Request

PARITY_REQUESTS = 64


@dataclass(frozen=True)
class Trial:
    """One engine tried for a side, its p50 in milliseconds, and whether it keeps parity; ``note`` says why not."""

    side: str
    backend: str
    precision: str
    p50_ms: float
    keeps_parity: bool
    note: str

    def __str__(self) -> str:
        """Return the trial as one line of text."""
        time_taken = f"{self.p50_ms:.3f} ms" if np.isfinite(self.p50_ms) else "not run"
        return f"{self.side}: {self.backend} {self.precision}: {time_taken}, {self.note}"


@dataclass(frozen=True)
class Choice:
    """The engine chosen for each side, and all trials, fastest first."""

    plans: tuple[EnginePlan, ...]
    tried: tuple[Trial, ...]

    def reasons(self) -> dict[str, str]:
        """Return one line per side: why its engine was chosen, and the results of all others."""
        found: dict[str, str] = {}
        for plan in self.plans:
            trials = [t for t in self.tried if t.side == plan.side]
            mine = next(t for t in trials if (t.backend, t.precision) == (plan.backend, plan.precision))
            sound = sum(t.keeps_parity for t in trials)
            others = [str(t).removeprefix(f"{plan.side}: ") for t in trials if t is not mine]
            name = f"{plan.backend} {plan.precision}"
            first = f"{name} takes {mine.p50_ms:.3f} ms, the fastest of {sound} that keep parity"
            # Error messages of runtimes contain line breaks.
            found[plan.side] = " ".join("; ".join([first, *others]).split())
        return found


def choose_engines(
    recipe: Recipe,
    onnx: Mapping[GraphSide, Path],
    folder: Path,
    cache: Path | None,
    requests: Sequence[Request],
    reference: Scores,
    progress: ProgressCallback = silent,
) -> Choice:
    """Try every backend and precision this machine can run, and pick for each side the fastest that keeps parity.

    Each engine is paired with the FP32 engine of the other side and checked on up to 64 requests against the
    recipe's SQNR, Kendall tau and probability bounds; the chosen pair is verified as a whole later. Engines that
    fail to build are listed with the reason.

    Raises:
        UgsepError: no engine of a side keeps parity.
    """
    sample, reference = list(requests[:PARITY_REQUESTS]), list(reference[:PARITY_REQUESTS])
    largest = max(requests, key=lambda r: r.candidates)
    feeds: dict[str, dict[str, Array]] = {"user": dict(largest.user)}
    plans: list[EnginePlan] = []
    tried: list[Trial] = []
    with ExitStack() as loaded:

        def open_engine(plan: EnginePlan, stack: ExitStack) -> tuple[BuiltEngine, Runner]:
            built, runner = _build(recipe, plan, onnx, folder, cache, progress)
            return built, stack.enter_context(closing(runner))

        plain = {s: open_engine(EnginePlan(s, "onnxruntime", "fp32"), loaded) for s in SIDES}
        state = plain["user"][1].infer(largest.user)
        feeds["item"] = _item_feeds(largest, state, max(recipe.serving.candidates))
        for side in SIDES:
            tried += _absent(side)
            with ExitStack() as opened:
                engines = {EnginePlan(side, "onnxruntime", "fp32"): plain[side]}
                for plan in _candidates(side):
                    if plan in engines:
                        continue
                    try:
                        engines[plan] = open_engine(plan, opened)
                    except UgsepError as error:
                        tried.append(Trial(side, plan.backend, plan.precision, float("inf"), False, str(error)))
                times = interleaved(
                    {plan: _call(runner, feeds[side]) for plan, (_, runner) in engines.items()}, ROUNDS
                )
                options = []
                for plan, engine in engines.items():
                    (user_built, user), (item_built, item) = (
                        (engine, plain["item"]) if side == "user" else (plain["user"], engine)
                    )
                    ranker = Ranker(user, item, user_built, item_built)
                    ok, note = _keeps_parity(recipe.gates, sample, reference, ranker)
                    options.append(Trial(side, plan.backend, plan.precision, times[plan].p50, ok, note))
            options.sort(key=lambda o: o.p50_ms)
            best = next((o for o in options if o.keeps_parity), None)
            if best is None:
                raise UgsepError(f"no {side} engine keeps parity: {'; '.join(map(str, options))}")
            plans.append(EnginePlan(side, best.backend, best.precision))
            tried += options
    return Choice(tuple(plans), tuple(tried))


def _candidates(side: Side) -> list[EnginePlan]:
    found = []
    for name in backend_names():
        backend = find_backend(name)
        here = backend.probe()
        if here.can_build and here.can_run:
            found += [EnginePlan(side, name, precision) for precision in backend.ONNX_VARIANT]
    return found


def _absent(side: str) -> list[Trial]:
    """Return a failed trial for each backend that cannot build and run on this machine."""
    probed = {name: find_backend(name).probe() for name in backend_names()}
    return [
        Trial(side, name, "any", float("inf"), False, here.reason)
        for name, here in probed.items()
        if not (here.can_build and here.can_run)
    ]


def _build(
    recipe: Recipe,
    plan: EnginePlan,
    onnx: Mapping[GraphSide, Path],
    folder: Path,
    cache: Path | None,
    progress: ProgressCallback,
) -> tuple[BuiltEngine, Runner]:
    target = folder / plan.backend / f"{plan.side}.{plan.precision}"
    target.mkdir(parents=True, exist_ok=True)
    progress(Progress("choose", 0, None, f"{plan.side}: {plan.backend} {plan.precision}"))
    started = time.perf_counter()
    built = compile_engine(recipe, plan, onnx[plan.side], target, cache, progress)
    runner = load_built(built, target)
    progress(Progress("choose", 0, None, f"built in {time.perf_counter() - started:.1f} s"))
    return built, runner


def _item_feeds(request: Request, state: Mapping[str, Array], candidates: int) -> dict[str, Array]:
    items = {k: np.resize(v, (candidates, *v.shape[1:])) for k, v in request.items.items()}
    return {**items, **state, USER_INDEX: np.zeros(candidates, np.int64)}


def _call(runner: Runner, feeds: Mapping[str, Array]) -> Callable[[], object]:
    return lambda: runner.infer(feeds)


def _keeps_parity(bounds: Gates, requests: Sequence[Request], reference: Scores, ranker: Ranker) -> tuple[bool, str]:
    scores = engine_scores(ranker, requests, "choose")
    worst: list[str] = []
    for found in checks.parity(reference, scores).values():
        made = checks.quant_checks(bounds, found)
        worst += [str(c) for c in made if not c.passed]
    return (not worst, "; ".join(worst) if worst else "keeps parity")
