"""The gates: parity with the FP32 model, quality, and the two checks that need no oracle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from engines.recipes.recipe import Gates
from engines.serve.ranker import Ranker
from engines.verify.agreement import Agreement, agreement
from engines.verify.latency import RequestLatency
from engines.verify.routing import Routing
from engines.verify.scores import Scores
from quant.requests.spec import Request
from quant.search.metrics import auc

#: Router logits nearer than this are tied: FP32 sums of a few hundred terms differ by that much in another order.
FP32_TIE = 1e-5


@dataclass(frozen=True)
class Check:
    """A value, its bound, and whether it holds; ``relation`` is how the two must compare."""

    name: str
    value: float
    bound: float
    relation: str = "<="

    @property
    def passed(self) -> bool:
        """Whether the bound holds; NaN never does."""
        return bool(self.value <= self.bound if self.relation == "<=" else self.value >= self.bound)

    def as_dict(self) -> dict[str, object]:
        """Return the check as ``report.json`` holds it."""
        return {
            "name": self.name,
            "value": self.value,
            "bound": self.bound,
            "relation": self.relation,
            "passed": self.passed,
        }

    def __str__(self) -> str:
        """Return the check as one readable line."""
        verdict = "ok" if self.passed else "FAILED"
        return f"{self.name}: {self.value:.6g} {self.relation} {self.bound:.6g} {verdict}"


def parity(reference: Scores, actual: Scores) -> dict[str, Agreement]:
    """Compare two sets of scores task by task."""
    return {
        task: agreement([s[task] for s in reference], [s[task] for s in actual])
        for task in (reference[0] if reference else {})
    }


def task_auc(requests: Sequence[Request], scores: Scores) -> dict[str, float]:
    """Return the AUC of every task whose labels hold both classes, over all rows."""
    result: dict[str, float] = {}
    for task in scores[0] if scores else {}:
        if requests and task in requests[0].labels:
            labels = np.concatenate([r.labels[task] for r in requests])
            value = auc(np.concatenate([s[task] for s in scores]), labels)
            if value is not None:
                result[task] = value
    return result


@dataclass(frozen=True)
class Invariance:
    """Largest score difference among identical candidates, and between permuted and unpermuted scores."""

    duplicates: float
    permutation: float


def check_invariance(ranker: Ranker, request: Request, seed: int = 0) -> Invariance:
    """Score one request's candidates twice each and in another order; both differences should be rounding at most.

    Only as many are scored twice as fit in one call, so that a request as large as the engine accepts can be checked.
    """
    order = np.random.default_rng(seed).permutation(request.candidates)
    plain = ranker.score(request.user, request.items)
    half = max(1, ranker.max_candidates // 2)
    pairs = {k: np.repeat(v[:half], 2, axis=0)[: ranker.max_candidates] for k, v in request.items.items()}
    twice = ranker.score(request.user, pairs)
    shuffled = ranker.score(request.user, {k: v[order] for k, v in request.items.items()})
    # np.max and not max, which drops a NaN that comes after a number.
    duplicates = np.max([np.abs(v[0::2] - v[1::2]).max(initial=0) for v in twice.values()])
    permutation = np.max([np.abs(shuffled[k] - v[order]).max() for k, v in plain.items()])
    return Invariance(float(duplicates), float(permutation))


def split_errors(reference: Scores, split: Scores, routing: Routing | None) -> dict[str, float]:
    """Return the largest score difference of the split by task, without rows whose experts FP32 itself cannot tell.

    If two experts are tied to the last bits, sums in another order may choose the other one.
    """
    found = {}
    for task in reference[0] if reference else {}:
        error = np.concatenate([np.abs(s[task] - r[task]) for r, s in zip(reference, split, strict=True)])
        kept = error if routing is None else error[routing.narrowest >= FP32_TIE]
        found[task] = float(kept.max()) if kept.size else 0.0
    return found


def parity_checks(
    gates: Gates, split: Mapping[str, float], quantized: dict[str, Agreement], invariance: Invariance
) -> list[Check]:
    """Return the parity checks of a build, per task if there are several; ``split`` as from ``split_errors``."""
    checks: list[Check] = []
    for task in split:
        suffix = f"[{task}]" if len(split) > 1 else ""
        checks.append(Check(f"split max |score difference|{suffix}", split[task], gates.split_max_abs))
        checks += quant_checks(gates, quantized[task], suffix)
    checks.append(Check("identical candidates, max |difference|", invariance.duplicates, gates.invariance))
    checks.append(Check("permuted candidates, max |difference|", invariance.permutation, gates.invariance))
    return checks


def quant_checks(gates: Gates, quantized: Agreement, suffix: str = "") -> list[Check]:
    """Return the checks that quantized logits must keep."""
    return [
        Check(f"quantized SQNR dB{suffix}", quantized.sqnr_db, gates.sqnr_db, ">="),
        Check(f"quantized Kendall tau{suffix}", quantized.kendall_tau, gates.kendall_tau, ">="),
        Check(f"quantized max |probability difference|{suffix}", quantized.max_probability, gates.max_probability),
    ]


def routing_checks(gates: Gates, routing: Routing) -> list[Check]:
    """Return the checks of top-k routers: how far rows with the same experts move, and how many get others."""
    same = routing.error[~routing.flipped]
    return [
        Check(
            "quantized max |probability difference|, rows with the experts of FP32",
            float(same.max()) if same.size else 0.0,
            gates.same_experts_probability,
        ),
        Check("share of rows with other experts than in FP32", float(routing.flipped.mean()), gates.rerouted_rows),
    ]


def auc_checks(gates: Gates, reference: dict[str, float], actual: dict[str, float]) -> list[Check]:
    """Return one check per labelled task: the AUC change against FP32."""
    return [
        Check(f"AUC change [{task}]", abs(actual[task] - value), gates.auc_change)
        for task, value in reference.items()
    ]


def latency_checks(gates: Gates, latency: RequestLatency) -> list[Check]:
    """Return the latency checks a recipe sets; a bound of 0 sets none."""
    checks = []
    size = f"N = {latency.candidates}"
    if gates.fraction_of_limit:
        checks.append(
            Check(f"fraction of the speed-up limit, {size}", latency.fraction_of_limit, gates.fraction_of_limit, ">=")
        )
    if gates.request_p99_ms:
        checks.append(Check(f"request p99 ms, {size}", latency.request.p99, gates.request_p99_ms))
    return checks
