"""The benchmark run: load everybody, check the scores, time all in turn, measure memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from engines.backends.contract import Array
from engines.bench.baselines.contract import BaselineSource, Run
from engines.bench.baselines.table import BASELINES
from engines.bench.ceiling import constant_gemms, gemms_alone
from engines.bench.contender import Contender, Loaded, Variant, baseline_contenders
from engines.bench.correctness import Quality, compare
from engines.bench.costs import Costs
from engines.bench.memory import resident_bytes
from engines.measure.interleave import interleaved
from engines.measure.peak import MachinePeak, measure_peak
from engines.measure.percentiles import Percentiles
from graphs.base.errors import GateFailed, UgsepError
from graphs.base.progress import Progress, ProgressCallback, silent
from quant.requests.readers import Request

CHECKED_CANDIDATES = 256
_GEMMS_ALONE: tuple[str, Variant] = ("item GEMMs alone", "item")
PLAIN_PAIR = "ugsep onnxruntime fp32"  # the split without quantization: what the GEMMs alone are compared with


@dataclass(frozen=True)
class Settings:
    """Request sizes, thread counts and rounds to time; ``memory`` also loads every contender in its own process.

    A baseline whose rounds at one size would take longer than ``budget_s`` seconds is left out there.
    """

    candidates: tuple[int, ...] = (1, 16, 64, 256, 1024)
    threads: tuple[int, ...] = (1, 2)
    rounds: int = 20
    memory: bool = True
    budget_s: float = 60.0

    def __post_init__(self) -> None:
        if not self.budget_s > 0:
            raise UgsepError(f"a budget of {self.budget_s} seconds per baseline and size; give more than 0")
        if self.rounds < 1 or not self.candidates or not self.threads or min(*self.candidates, *self.threads, 1) < 1:
            raise UgsepError(
                f"candidates {self.candidates}, threads {self.threads}, rounds {self.rounds}: give at least 1 of each"
            )


@dataclass(frozen=True)
class Timing:
    """One series at one size: milliseconds, and what they mean in candidates, arithmetic and weights per second.

    ``gflops`` counts the model's FLOPs of the call; ``weight_gb_s`` the weights it reads at least once.
    """

    name: str
    variant: str
    threads: int
    candidates: int
    ms: Percentiles
    candidates_per_s: float
    gflops: float
    weight_gb_s: float


@dataclass(frozen=True)
class Standing:
    """One contender: how well it scores, and the memory a process needs for it (None where it was not measured)."""

    name: str
    ours: bool
    chosen: bool
    precision: str
    detail: str
    quality: Quality
    memory_bytes: int | None = None


@dataclass(frozen=True)
class Ceiling:
    """The GEMMs of the FP32 item graph alone, and ``share``: their time over the FP32 item engine's (1 is ideal)."""

    threads: int
    candidates: int
    gflops: float
    share: float


@dataclass(frozen=True)
class Measured:
    """Everything one run found. ``left_out``: contender -> why it was not timed."""

    standings: tuple[Standing, ...]
    timings: tuple[Timing, ...]
    peaks: tuple[MachinePeak, ...]
    left_out: Mapping[str, str] = field(default_factory=dict)
    ceilings: tuple[Ceiling, ...] = ()


def sized(request: Request, candidates: int) -> Request:
    """Return the request with its first ``candidates`` rows.

    Raises:
        UgsepError: it has fewer rows.
    """
    if candidates > request.candidates:
        raise UgsepError(f"the request has {request.candidates} candidates, {candidates} are needed")
    return Request(request.request_id, request.user, {k: v[:candidates] for k, v in request.items.items()})


def measure(
    contenders: Sequence[Contender],
    source: BaselineSource,
    request: Request,
    costs: Costs,
    settings: Settings,
    item_graph: Path | None = None,
    peak: Callable[[int], MachinePeak] = measure_peak,
    progress: ProgressCallback = silent,
) -> Measured:
    """Check and time all contenders in one interleaved run per thread count and request size.

    A baseline that does not load or whose scores are wrong is left out, with the reason.

    Args:
        contenders: who takes part.
        source: where the FP32 scores come from that all are compared with: ``source.onnx`` in ONNX Runtime.
        request: at least as many candidates as the largest size.
        costs: FLOPs and weight bytes of the model's sides.
        settings: sizes, threads, rounds.
        item_graph: lowered FP32 item graph whose GEMMs are also timed alone; needs ``PLAIN_PAIR`` with its sides.
        peak: measures the machine for a thread count.
        progress: told about every step.

    Raises:
        GateFailed: one of our own pairs scores wrongly.
        UgsepError: one of our own pairs does not load; ONNX Runtime is missing.
    """
    peaks = tuple(peak(threads) for threads in settings.threads)
    small = sized(request, min(CHECKED_CANDIDATES, max(settings.candidates)))
    reference = _reference(source, small)
    gemms = constant_gemms(item_graph) if item_graph is not None else []
    left_out: dict[str, str] = {}
    standings: dict[str, Standing] = {}
    timings: list[Timing] = []
    ceilings: list[Ceiling] = []
    for threads in settings.threads:
        loaded: dict[str, Loaded] = {}
        for contender in contenders:
            if contender.name in left_out:
                continue
            progress(Progress("load", len(loaded), len(contenders), f"{contender.name}, {threads} threads"))
            try:
                ready = contender.load(threads)
                quality = _check(contender, ready(small), reference)
            except GateFailed:
                raise
            except Exception as error:  # baselines are other people's libraries: whatever they raise is their result
                if contender.ours:
                    raise
                left_out[contender.name] = _reason(error)
                continue
            if not quality.holds:
                left_out[contender.name] = f"SQNR {quality.sqnr_db:.1f} dB against FP32 < {quality.floor_db:.0f} dB"
                continue
            loaded[contender.name] = ready
            standings.setdefault(contender.name, _standing(contender, quality))
        alone = gemms_alone(gemms, threads)
        present = {c.name: c for c in contenders if c.name in loaded}
        for done, candidates in enumerate(settings.candidates):
            progress(Progress(f"time, {threads} threads", done, len(settings.candidates), f"N = {candidates}"))
            now = sized(request, candidates)
            calls: dict[tuple[str, Variant], Callable[[], object]] = {
                (name, variant): run for name, ready in loaded.items() for variant, run in ready(now).items()
            }
            if alone is not None:
                calls[_GEMMS_ALONE] = alone(candidates)
            whole = {key for key in calls if key[1] == "whole"}
            found = interleaved(calls, settings.rounds, settings.budget_s, whole)
            for name, _ in whole - found.keys():
                left_out[f"{name} at N = {candidates}, threads = {threads}"] = (
                    f"{settings.rounds} rounds take longer than {settings.budget_s:.0f} s"
                )
            if alone is not None:
                seconds = found.pop(_GEMMS_ALONE).p50 / 1e3
                rate = sum(gemm.flops(candidates) for gemm in gemms) / seconds / 1e9
                share = seconds * 1e3 / found[PLAIN_PAIR, "item"].p50
                ceilings.append(Ceiling(threads, candidates, rate, share))
            timings += [_timing(present[n], v, threads, candidates, ms, costs) for (n, v), ms in found.items()]
        progress(Progress(f"time, {threads} threads", len(settings.candidates), len(settings.candidates)))
    if settings.memory:
        largest = sized(request, max(settings.candidates))
        standings = _with_memory(contenders, standings, largest, progress)
    return Measured(tuple(standings.values()), tuple(timings), peaks, left_out, tuple(ceilings))


def _reference(source: BaselineSource, request: Request) -> dict[str, Array]:
    (whole,) = baseline_contenders(["onnxruntime"], source)
    return whole.load(1)(request)["whole"]()


def _check(contender: Contender, calls: Mapping[Variant, Run], reference: Mapping[str, Array]) -> Quality:
    quality = compare(reference, calls["cold" if contender.ours else "whole"](), contender.precision)
    if contender.ours and not quality.holds:
        raise GateFailed(
            f"{contender.name}: SQNR {quality.sqnr_db:.1f} dB against FP32 < {quality.floor_db:.0f} dB; find the "
            "tensor with 'ugsep bisect'"
        )
    if not contender.ours and BASELINES[contender.name].precision == "fp32" and not quality.holds:
        raise UgsepError(
            f"scores are not the bundle's (SQNR {quality.sqnr_db:.1f} dB < {quality.floor_db:.0f} dB); "
            "a PyTorch baseline needs the weights the bundle was built from"
        )
    return quality


def _reason(error: Exception) -> str:
    if isinstance(error, UgsepError):
        return str(error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200] if lines else 'no message'}"


def _standing(contender: Contender, quality: Quality) -> Standing:
    return Standing(
        contender.name, contender.ours, contender.chosen, contender.precision, contender.detail, quality
    )  # fmt: skip


def _timing(
    contender: Contender, variant: Variant, threads: int, candidates: int, ms: Percentiles, costs: Costs
) -> Timing:
    seconds = ms.p50 / 1e3
    return Timing(
        contender.name,
        variant,
        threads,
        candidates,
        ms,
        candidates / seconds,
        costs.flops(variant, candidates) / seconds / 1e9,
        costs.weight_bytes(variant, contender.weight_bits) / seconds / 1e9,
    )


def _with_memory(
    contenders: Sequence[Contender], standings: Mapping[str, Standing], request: Request, progress: ProgressCallback
) -> dict[str, Standing]:
    found = dict(standings)
    for done, contender in enumerate(c for c in contenders if c.name in standings):
        progress(Progress("memory", done, len(standings), contender.name))
        grown = resident_bytes(contender, request)
        found[contender.name] = dataclasses.replace(found[contender.name], memory_bytes=grown)
    progress(Progress("memory", len(standings), len(standings)))
    return found
