"""One benchmark, from a bundle to its result, and the result as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.bench import findings
from engines.bench.baselines.contract import BaselineSource, ModelWeights
from engines.bench.contender import baseline_contenders, bundle_pairs, extra_pairs, our_contender
from engines.bench.costs import Costs, costs_of_report
from engines.bench.machine import Machine, this_machine
from engines.bench.ratios import RatioPoint, measure_ratios
from engines.bench.run import Measured, Settings, measure
from engines.bundle.bundle import Bundle
from graphs.base.errors import UgsepError
from graphs.base.finite import finite
from graphs.base.progress import Progress, ProgressCallback, silent
from graphs.base.scratch import scratch_folder
from quant.requests.spec import Request

_SEED = 3


@dataclass(frozen=True)
class BenchResult:
    """Everything a benchmark measured for a model on a machine."""

    model: str
    command: str
    machine: Machine
    settings: Settings
    costs: Costs
    measured: Measured
    sizes: tuple[findings.Size, ...]
    ratios: tuple[RatioPoint, ...] = ()

    @property
    def sentences(self) -> list[str]:
        """The result in words."""
        return findings.sentences(self.measured, self.sizes)

    def break_even(self, threads: int, speedup: str = "speedup") -> float | None:
        """Return the N from which the split pays off (``findings.break_even``)."""
        return findings.break_even([s for s in self.sizes if s.threads == threads], speedup)


def run_bench(
    bundle: Path,
    baselines: Sequence[str],
    settings: Settings,
    model: ModelWeights | None = None,
    *,
    ratios: bool = False,
    command: str = "",
    progress: ProgressCallback = silent,
) -> BenchResult:
    """Measure a bundle against baselines on random requests.

    Args:
        bundle: the bundle; every score is compared with its FP32 graph.
        baselines: names from ``engines.bench.baselines.table.BASELINES``.
        settings: sizes, threads, rounds.
        model: source of weights for the PyTorch baselines, which are left out without it.
        ratios: also time small random models at several ratios of user to item tokens.
        command: the command line, for the page.
        progress: called at every step.

    Raises:
        UgsepError: the bundle is damaged, or this machine cannot run its engines.
        GateFailed: the scores of our engines are wrong.
    """
    machine = this_machine()
    opened = Bundle.open(bundle)
    manifest, recipe = opened.manifest, opened.recipe
    largest = max(settings.candidates)
    serving = dataclasses.replace(recipe.serving, max_candidates=max(largest, recipe.serving.max_candidates))
    recipe = dataclasses.replace(recipe, serving=serving)
    held = [e.built.max_candidates for e in manifest.engines if e.built.side == "item" and e.built.profiles]
    if held and largest > min(held):
        raise UgsepError(
            f"N = {largest} is beyond the {min(held)} candidates {bundle} was built for; leave it out of --candidates"
        )
    costs = costs_of_report(opened.report)
    request = random_request(opened, largest)
    with scratch_folder(".ugsep-bench-") as folder:
        source = BaselineSource(opened.onnx("full"), folder, recipe, model)
        pairs, left_out = bundle_pairs(bundle, manifest)
        names = [pair.name for pair in pairs]
        extra, not_built = extra_pairs(recipe, opened.onnx("full").parent, folder / "pairs", names, progress=progress)
        contenders = [
            *baseline_contenders(baselines, source),
            *(our_contender(p, chosen=p is pairs[0], ceiling=p.is_plain) for p in (*pairs, *extra)),
        ]
        measured = measure(contenders, source, request, costs, settings, progress=progress)
        measured = dataclasses.replace(measured, left_out={**measured.left_out, **left_out, **not_built})
        points = (
            measure_ratios(baselines, settings, folder / "ratios", measured.peaks[0], progress=progress)
            if ratios
            else []
        )
    sizes = tuple(findings.sizes(measured, costs, recipe.gates.sqnr_db))
    progress(Progress("bench", 1, 1))
    return BenchResult(manifest.model, command, machine, settings, costs, measured, sizes, tuple(points))


def random_request(bundle: Bundle, candidates: int) -> Request:
    """Return one random request for a bundle; times do not depend on its values."""
    return next(bundle.synthetic_requests(1, candidates, _SEED))


def document(result: BenchResult) -> dict[str, Any]:
    """Return the content of ``bench.json``: the result and figures derived from it, times in milliseconds."""
    whole: dict[str, Any] = dataclasses.asdict(result)
    for entry, size in zip(whole["sizes"], result.sizes, strict=True):
        entry |= {"speedup": size.speedup, "best_speedup": size.best_speedup, "cached_speedup": size.cached_speedup}
    for entry, point in zip(whole["ratios"], result.ratios, strict=True):
        entry |= {"speedup": point.speedup, "best_speedup": point.best_speedup}
    threads = dict.fromkeys(s.threads for s in result.sizes)
    whole["break_even"] = {str(t): result.break_even(t) for t in threads}
    whole["sentences"] = result.sentences
    whole["ours"] = [
        {
            "threads": s.threads,
            "candidates": s.candidates,
            "baseline": s.baseline,
            **dataclasses.asdict(o),
            "speedup": o.speedup,
        }
        for s in findings.headline(result.sizes)
        for o in findings.standoffs(result.measured, s)
    ]
    shown: dict[str, Any] = finite(whole)
    return shown
