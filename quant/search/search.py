"""Choose the cheapest precision of every weight that passes the quality gate, with a reason for each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from graphs.base.errors import GateFailed, UgsepError
from graphs.base.finite import finite
from graphs.base.progress import Progress, ProgressCallback, silent
from graphs.base.yaml_text import write_yaml
from quant.arrays import Array
from quant.calibration.statistics import Calibration
from quant.graph.gemms import Weight
from quant.policy import Policy, Precision, Rule, policy_document
from quant.requests.spec import Request
from quant.schemes.schemes import SchemeConfig
from quant.search.gemm_latency import MeasureGemm
from quant.search.metrics import Effect, effect_of
from quant.search.sensitivity import Candidates, SensitivityRow, open_candidates, sensitivity

# a precision must be faster by more than measurement noise to be chosen for speed
_MARGIN = 0.95


@dataclass(frozen=True)
class Goal:
    """The quality a policy must keep, and the bytes it may take.

    ``min_sqnr_db`` and ``max_drop`` (largest AUC change, if labels exist) bound the scores of all rows with every
    chosen weight quantized. ``max_bytes`` bounds the quantizable weights of both graphs; None: speed alone decides.
    """

    max_drop: float = 5e-5
    min_sqnr_db: float = 35.0
    max_bytes: int | None = None


@dataclass(frozen=True)
class Choice:
    """The precision of one weight, and the reason.

    ``ms`` and ``sizes`` are, per precision, milliseconds per call at ``rows`` rows and bytes; ``sqnr_db`` is that of
    the scores with this weight alone in int8.
    """

    side: str
    weight: str
    precision: Precision
    rows: int
    ms: Mapping[Precision, float]
    sizes: Mapping[Precision, int]
    sqnr_db: float
    reason: str

    @property
    def bytes(self) -> int:
        """Bytes of the weight as chosen."""
        return self.sizes[self.precision]

    def to_json(self) -> dict[str, Any]:
        """Return the choice as plain values; infinite latency (unsupported) and SQNR become None."""
        return dict(finite({**vars(self), "bytes": self.bytes}))


@dataclass(frozen=True)
class SearchResult:
    """The policy, the choice behind each rule, and the effect of all of them together on the scores."""

    policy: Policy
    choices: tuple[Choice, ...]
    effect: Effect


def search(
    user_onnx: Path,
    item_onnx: Path,
    requests: Iterable[Request],
    *,
    scheme: SchemeConfig,
    calibration: Calibration | None,
    goal: Goal,
    measure: MeasureGemm,
    candidates: int = 256,
    base: Policy | None = None,
    threads: int = 1,
    cache: Path | None = None,
    progress: ProgressCallback = silent,
) -> SearchResult:
    """Return the policy with the least measured latency (and at most ``max_bytes``) whose scores pass the goal.

    Every weight is timed at the rows of its side: one user, ``candidates`` items (times the feature tokens if a 2-D
    weight serves all of them, as calibrated). int8 or fp16 is chosen if it is faster; then, to save bytes, fp16 if it
    costs no time and int8 if it harms least; then int8 is reverted, most harmful first, until the gate passes.

    Raises:
        UgsepError: a byte bound below int8 everywhere.
        GateFailed: no policy meets both the byte bound and the quality gate.
    """
    base = base or Policy()
    kept = tuple(requests)
    opened = open_candidates(user_onnx, item_onnx, kept, scheme, calibration, base.block, threads)
    least = sum(_sizes(w)["int8"] for _, w in opened.weights)
    if goal.max_bytes is not None and least > goal.max_bytes:
        raise UgsepError(f"--max-bytes {goal.max_bytes} is below {least}, the bytes of int8 everywhere; allow more")
    rows = sensitivity(
        user_onnx,
        item_onnx,
        kept,
        scheme=scheme,
        calibration=calibration,
        block=base.block,
        threads=threads,
        cache=cache,
        progress=progress,
    )
    alone = {(r.side, r.weight): r for r in rows}
    choices = _fastest(opened, alone, calibration, candidates, measure, progress)
    choices = _fit_bytes(choices, goal.max_bytes)
    chosen, effect = _fit_quality(opened, choices, goal, progress)
    rules = tuple(Rule(f"{c.side}:{_literal(c.weight)}", c.precision, c.reason) for c in chosen)
    return SearchResult(replace(base, rules=rules), chosen, effect)


def _fastest(
    opened: Candidates,
    alone: dict[tuple[str, str], SensitivityRow],
    calibration: Calibration | None,
    candidates: int,
    measure: MeasureGemm,
    progress: ProgressCallback,
) -> list[Choice]:
    measured: dict[tuple[tuple[int, ...], int], Mapping[Precision, float]] = {}
    choices = []
    for number, (side, weight) in enumerate(opened.weights):
        progress(Progress("measure", number, len(opened.weights), f"{side}:{weight.name}"))
        rows = _rows(side, weight, calibration, candidates)
        key = (weight.shape, rows)
        if key not in measured:
            measured[key] = measure(*key)
        ms = measured[key]
        sizes = _sizes(weight)
        best = min(sizes, key=lambda p: ms[p])
        faster = ms[best] < _MARGIN * ms["fp32"]
        sqnr = alone[side, weight.name].sqnr_db
        times = ", ".join(f"{p} {ms[p]:.3g} ms" if np.isfinite(ms[p]) else f"{p} does not run" for p in sizes)
        reason = f"{'fastest' if faster else 'nothing is faster'}: {times} at {rows} rows; int8 alone {sqnr:.1f} dB"
        choices.append(Choice(side, weight.name, best if faster else "fp32", rows, ms, sizes, sqnr, reason))
    progress(Progress("measure", len(choices), len(choices)))
    return choices


def _sizes(weight: Weight) -> dict[Precision, int]:
    """Return the bytes of a weight in each precision, one scale per output channel."""
    elements = weight.elements
    return {"int8": elements + 4 * (elements // weight.shape[-2]), "fp16": elements * 2, "fp32": elements * 4}


def _rows(side: str, weight: Weight, calibration: Calibration | None, candidates: int) -> int:
    """Return the rows one call multiplies with the weight; calibration counted them per user or candidate."""
    calls = 1 if side == "user" else candidates
    if calibration is None:
        return calls
    seen = (calibration.user if side == "user" else calibration.item).of(weight.name).count
    units = sum(s.requests for s in calibration.samples) if side == "user" else calibration.rows
    return max(1, round(calls * seen / units))


def _fit_bytes(choices: list[Choice], bound: int | None) -> list[Choice]:
    if bound is None:
        return choices
    chosen = list(choices)
    order = sorted(range(len(chosen)), key=lambda i: _noise(chosen[i]) / (chosen[i].sizes["fp32"] or 1))
    free = [(i, _float_precision(chosen[i])) for i in order if chosen[i].precision == "fp32"]
    steps: list[tuple[int, Precision]] = [*free, *((i, "int8") for i in order)]
    for index, precision in steps:
        if sum(c.bytes for c in chosen) <= bound:
            break
        if chosen[index].precision not in ("int8", precision):
            chosen[index] = replace(chosen[index], precision=precision, reason=f"for bytes; {choices[index].reason}")
    return chosen


def _float_precision(choice: Choice) -> Precision:
    """Return fp16 if it is as fast as fp32, else fp32."""
    return "fp16" if choice.ms["fp16"] * _MARGIN < choice.ms["fp32"] else "fp32"


def _fit_quality(
    opened: Candidates, choices: list[Choice], goal: Goal, progress: ProgressCallback
) -> tuple[tuple[Choice, ...], Effect]:
    weights = {(side, w.name): w for side, w in opened.weights}
    reference = opened.scorer.score()
    chosen = list(choices)
    restored: dict[tuple[str, str, Precision], dict[str, Array]] = {}
    while True:
        narrow = [i for i, c in enumerate(chosen) if c.precision != "fp32"]
        progress(Progress("check", 0, None, f"{len(narrow)} weights in int8 or fp16"))
        replaced: dict[str, dict[str, Array]] = {"user": {}, "item": {}}
        for c in (chosen[i] for i in narrow):
            key = (c.side, c.weight, c.precision)
            if key not in restored:
                restored[key] = _restored(opened, weights[c.side, c.weight], c)
            replaced[c.side] |= restored[key]
        scores = opened.scorer.score_both(replaced["user"], replaced["item"])
        effect = effect_of(reference, scores, opened.scorer.labels, opened.scorer.sizes)
        if effect.sqnr_db >= goal.min_sqnr_db and abs(effect.auc_change or 0.0) <= goal.max_drop:
            return tuple(chosen), effect
        # Without narrow weights the scores equal the reference and the goal holds, so there is one here.
        worst = max(narrow, key=lambda i: (chosen[i].precision == "int8", _noise(chosen[i])))
        back: Precision = "fp32"
        if goal.max_bytes is not None and chosen[worst].precision == "int8":
            back = _float_precision(chosen[worst])
        reason = f"for quality, {chosen[worst].sqnr_db:.1f} dB alone; {chosen[worst].reason}"
        chosen[worst] = replace(chosen[worst], precision=back, reason=reason)
        total = sum(c.bytes for c in chosen)
        if goal.max_bytes is not None and total > goal.max_bytes:
            raise GateFailed(
                f"no policy within {goal.max_bytes} bytes keeps SQNR >= {goal.min_sqnr_db:g} dB and AUC change <= "
                f"{goal.max_drop:g}: at that size it is {effect.sqnr_db:.1f} dB; allow {total} bytes"
            )


def _restored(opened: Candidates, weight: Weight, choice: Choice) -> dict[str, Array]:
    """Return a weight as its precision restores it, and its bias if that changes."""
    if choice.precision == "int8":
        return opened.restored(choice.side, weight)
    return {weight.name: opened.graph(choice.side).weights[weight.name].astype(np.float16).astype(np.float32)}


def _noise(choice: Choice) -> float:
    """Return the noise power of a weight relative to the scores; independent weights add theirs."""
    return float(10 ** (-choice.sqnr_db / 10))


def _literal(name: str) -> str:
    return name.replace("[", "[[]").replace("*", "[*]").replace("?", "[?]")


def policy_yaml(result: SearchResult) -> str:
    """Return the policy as YAML for a recipe, with a reason for every rule, to be read and edited."""
    effect = result.effect
    auc = "" if effect.auc_change is None else f", AUC change {effect.auc_change:+.2g}"
    head = f"# {effect.sqnr_db:.1f} dB, Kendall tau {effect.kendall_tau:.4f}{auc} with all rules together\n"
    document: dict[str, Any] = {"policy": policy_document(result.policy)}
    return head + write_yaml(document, width=160)
