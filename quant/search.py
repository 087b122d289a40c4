"""Choose the cheapest precision of every weight that keeps the quality gate, and say why."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from graphs.errors import GateFailed, UgsepError, nearest
from graphs.progress import Progress, ProgressCallback, silent
from quant.gemm_latency import MeasureGemm, onnxruntime_latency
from quant.gemms import Array, Weight
from quant.metrics import Effect, effect_of
from quant.policy import Policy, Precision, Rule, policy_document
from quant.requests import Request
from quant.schemes import SchemeConfig
from quant.sensitivity import Candidates, SensitivityRow, open_candidates, sensitivity
from quant.statistics import Calibration

# int8 must win by more than a measurement can be off before it is taken for speed
_MARGIN = 0.97
LATENCY: dict[str, MeasureGemm] = {"onnxruntime": onnxruntime_latency}


@dataclass(frozen=True)
class Goal:
    """What the policy must keep, and the bytes it may take.

    ``min_sqnr_db`` and ``max_drop`` (largest AUC change, where labels exist) bind the scores of all rows with every
    chosen weight quantized. ``max_bytes`` bounds the quantizable weights of both graphs; None: speed alone decides.
    """

    max_drop: float = 5e-5
    min_sqnr_db: float = 35.0
    max_bytes: int | None = None


@dataclass(frozen=True)
class Choice:
    """The precision of one weight: milliseconds per call at ``rows`` rows and bytes of both precisions, and why."""

    side: str
    weight: str
    precision: Precision
    rows: int
    fp32_ms: float
    int8_ms: float
    fp32_bytes: int
    int8_bytes: int
    sqnr_db: float
    reason: str

    @property
    def bytes(self) -> int:
        """Bytes of the weight as chosen."""
        return self.int8_bytes if self.precision == "int8" else self.fp32_bytes


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
    candidates: int = 256,
    backend: str = "onnxruntime",
    measure: MeasureGemm | None = None,
    base: Policy | None = None,
    threads: int = 1,
    cache: Path | None = None,
    progress: ProgressCallback = silent,
) -> SearchResult:
    """Return the policy with the least measured latency (and at most ``max_bytes``) whose scores pass the goal.

    Every weight is measured at its side's rows: one user, ``candidates`` items (times the tokens where a 2-D weight
    serves all of them, as calibrated). int8 is taken where it is faster; then, for bytes, where it does least
    harm; then taken back, most harmful first, until the gate holds.

    Raises:
        UgsepError: an unknown backend, or a byte bound that int8 everywhere does not reach.
        GateFailed: the byte bound and the quality gate exclude each other.
    """
    if measure is None and backend not in LATENCY:
        raise UgsepError(f"no latency measurement for backend '{backend}'{nearest(backend, LATENCY)}")
    base = base or Policy()
    kept = tuple(requests)
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
    opened = open_candidates(user_onnx, item_onnx, kept, scheme, calibration, base.block, threads)
    alone = {(r.side, r.weight): r for r in rows}
    choices = _fastest(opened, alone, calibration, candidates, measure or LATENCY[backend], progress)
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
    measured: dict[tuple[tuple[int, ...], int, Precision], float] = {}

    def milliseconds(shape: tuple[int, ...], rows: int, precision: Precision) -> float:
        key = (shape, rows, precision)
        if key not in measured:
            measured[key] = measure(*key)
        return measured[key]

    choices = []
    for number, (side, weight) in enumerate(opened.weights):
        progress(Progress("measure", number, len(opened.weights), f"{side}:{weight.name}"))
        rows = _rows(side, weight, calibration, candidates)
        fp32, int8 = (milliseconds(weight.shape, rows, p) for p in ("fp32", "int8"))
        columns = weight.elements // weight.shape[-2]
        sqnr = alone[side, weight.name].sqnr_db
        faster = int8 < _MARGIN * fp32
        times = f"{int8:.3g} ms int8, {fp32:.3g} ms fp32 at {rows} rows; {sqnr:.1f} dB alone"
        choices.append(
            Choice(
                side,
                weight.name,
                "int8" if faster else "fp32",
                rows,
                fp32,
                int8,
                weight.elements * 4,
                weight.elements + 4 * columns,
                sqnr,
                f"{'faster' if faster else 'not faster'}: {times}",
            )
        )
    progress(Progress("measure", len(choices), len(choices)))
    return choices


def _rows(side: str, weight: Weight, calibration: Calibration | None, candidates: int) -> int:
    """Return the rows that one call multiplies with the weight; calibration counted them per user or candidate."""
    calls = 1 if side == "user" else candidates
    if calibration is None:
        return calls
    seen = (calibration.user if side == "user" else calibration.item).of(weight.name).count
    units = sum(s.requests for s in calibration.samples) if side == "user" else calibration.rows
    return max(1, round(calls * seen / units))


def _fit_bytes(choices: list[Choice], bound: int | None) -> list[Choice]:
    if bound is None:
        return choices
    least = sum(c.int8_bytes for c in choices)
    if least > bound:
        raise UgsepError(f"--max-bytes {bound} is below {least}, the bytes of int8 everywhere; allow more")
    chosen = list(choices)
    order = sorted(range(len(chosen)), key=lambda i: _noise(chosen[i]) / (chosen[i].fp32_bytes or 1))
    for index in order:
        if sum(c.bytes for c in chosen) <= bound:
            break
        if chosen[index].precision != "int8":
            reason = f"for bytes; {chosen[index].reason}"
            chosen[index] = replace(chosen[index], precision="int8", reason=reason)
    return chosen


def _fit_quality(
    opened: Candidates, choices: list[Choice], goal: Goal, progress: ProgressCallback
) -> tuple[tuple[Choice, ...], Effect]:
    weights = {(side, w.name): w for side, w in opened.weights}
    reference = opened.scorer.score()
    chosen = list(choices)
    quantized = sum(c.precision == "int8" for c in chosen)
    for attempt in range(quantized + 1):
        progress(Progress("check", attempt, None, f"{quantized - attempt} weights int8"))
        replaced: dict[str, dict[str, Array]] = {"user": {}, "item": {}}
        for c in chosen:
            if c.precision == "int8":
                replaced[c.side][c.weight] = opened.restored(c.side, weights[c.side, c.weight])
        scores = opened.scorer.score_both(replaced["user"], replaced["item"])
        effect = effect_of(reference, scores, opened.scorer.labels)
        if effect.sqnr_db >= goal.min_sqnr_db and abs(effect.auc_change or 0.0) <= goal.max_drop:
            return tuple(chosen), effect
        worst = max((i for i, c in enumerate(chosen) if c.precision == "int8"), key=lambda i: _noise(chosen[i]))
        reason = f"for quality, {chosen[worst].sqnr_db:.1f} dB alone; {chosen[worst].reason}"
        chosen[worst] = replace(chosen[worst], precision="fp32", reason=reason)
        total = sum(c.bytes for c in chosen)
        if goal.max_bytes is not None and total > goal.max_bytes:
            raise GateFailed(
                f"no policy within {goal.max_bytes} bytes keeps SQNR >= {goal.min_sqnr_db:g} dB and AUC change <= "
                f"{goal.max_drop:g}: at that size it is {effect.sqnr_db:.1f} dB; allow {total} bytes"
            )
    raise AssertionError("FP32 everywhere has no effect on the scores")


def _noise(choice: Choice) -> float:
    """Return the noise power of a weight relative to the scores; independent weights add theirs."""
    return float(10 ** (-choice.sqnr_db / 10))


def _literal(name: str) -> str:
    return name.replace("[", "[[]").replace("*", "[*]").replace("?", "[?]")


def policy_yaml(result: SearchResult) -> str:
    """Return the policy as YAML for a recipe, with the reason of every rule; meant to be read and edited."""
    effect = result.effect
    auc = "" if effect.auc_change is None else f", AUC change {effect.auc_change:+.2g}"
    head = f"# {effect.sqnr_db:.1f} dB, Kendall tau {effect.kendall_tau:.4f}{auc} with all rules together\n"
    document: dict[str, Any] = {"policy": policy_document(result.policy)}
    return head + yaml.safe_dump(document, sort_keys=False, width=160)
