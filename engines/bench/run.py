"""The benchmark run: load all contenders, check their scores, time them interleaved, measure their memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property

from engines.backends.contract import Array
from engines.bench.baselines.contract import BaselineSource, Run
from engines.bench.ceiling import Gemm, constant_gemms, gemms_alone
from engines.bench.contender import Contender, Loaded, Variant, baseline_contenders
from engines.bench.correctness import Quality, compare
from engines.bench.costs import Costs
from engines.bench.memory import check_memory, load_and_score_bytes
from engines.bench.peak import MachinePeak, measure_peak
from engines.measure.interleave import interleaved
from engines.measure.percentiles import Percentiles
from graphs.base.errors import GateFailed, UgsepError, first_line
from graphs.base.progress import Progress, ProgressCallback, silent
from quant.requests.spec import Request

CHECKED_CANDIDATES = 256
_GEMMS_ALONE: tuple[None, Variant] = (None, "item")


@dataclass(frozen=True)
class Settings:
    """Request sizes, thread counts and rounds; ``memory`` also measures every contender's memory in its own process.

    A baseline is left out at sizes where its rounds would take longer than ``budget_s`` seconds.
    """

    candidates: tuple[int, ...] = (1, 16, 64, 256, 1024)
    threads: tuple[int, ...] = (1, 2)
    rounds: int = 20
    memory: bool = True
    budget_s: float = 60.0

    def __post_init__(self) -> None:
        if not self.budget_s > 0:
            raise UgsepError(f"budget {self.budget_s} s is out of range; must be > 0 seconds per baseline and size")
        if self.rounds < 1 or not self.candidates or not self.threads or min(*self.candidates, *self.threads, 1) < 1:
            raise UgsepError(
                f"candidates {self.candidates}, threads {self.threads}, rounds {self.rounds}: give at least 1 of each"
            )


@dataclass(frozen=True)
class Timing:
    """One contender, variant and size: milliseconds, and the rates of candidates, arithmetic and weight reads.

    ``gflops`` counts the model's FLOPs in the call; ``weight_gb_s`` the weight bytes it has to read.
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
    """One contender: the quality of its scores, and the memory a process needs for it (None if not measured)."""

    name: str
    ours: bool
    chosen: bool
    precision: str
    detail: str
    quality: Quality
    memory_bytes: int | None = None


@dataclass(frozen=True)
class Ceiling:
    """The GEMMs of the FP32 item graph alone; ``share`` is their time over the FP32 item engine's (1 is ideal)."""

    threads: int
    candidates: int
    gflops: float
    share: float


@dataclass(frozen=True)
class Measured:
    """The results of one run; ``left_out`` maps a contender to the reason it was not timed."""

    standings: tuple[Standing, ...]
    timings: tuple[Timing, ...]
    peaks: tuple[MachinePeak, ...]
    left_out: Mapping[str, str] = field(default_factory=dict)
    ceilings: tuple[Ceiling, ...] = ()


def sized(request: Request, candidates: int) -> Request:
    """Return the request with its first ``candidates`` rows.

    Raises:
        UgsepError: the request has fewer rows.
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
    peak: Callable[[int], MachinePeak] = measure_peak,
    progress: ProgressCallback = silent,
) -> Measured:
    """Check and time all contenders in one interleaved run per thread count and request size.

    A contender that need not hold is left out, with the reason, if it does not load or its scores are wrong.

    Args:
        contenders: what to time; the GEMMs of the one with an ``item_graph`` are also timed alone.
        source: its ``onnx``, run in ONNX Runtime, gives the FP32 reference scores.
        request: must have at least as many candidates as the largest size.
        costs: FLOPs and weight bytes of the model's sides.
        settings: sizes, threads, rounds.
        peak: measures the machine for a thread count.
        progress: called at every step.

    Raises:
        GateFailed: one of our own pairs has wrong scores.
        UgsepError: not enough memory for all; one of our own pairs does not load; ONNX Runtime is missing.
    """
    check_memory(len(contenders), source.onnx)
    peaks = tuple(peak(threads) for threads in settings.threads)
    small = sized(request, min(CHECKED_CANDIDATES, max(settings.candidates)))
    reference = _reference(source, small)
    plan = _Plan(request, settings, costs, next((c for c in contenders if c.item_graph is not None), None))
    present = list(contenders)
    qualities: dict[Contender, Quality] = {}
    left_out: dict[str, str] = {}
    timings: list[Timing] = []
    ceilings: list[Ceiling] = []
    for threads in settings.threads:
        with ExitStack() as stack:
            ready, refused = _load_all(present, threads, small, reference, stack, progress)
            loaded = {contender: found for contender, (found, _) in ready.items()}
            timed = _time_sizes(plan, loaded, threads, progress)
        present = list(ready)
        qualities |= {contender: q for contender, (_, q) in ready.items() if contender not in qualities}
        left_out |= {contender.name: reason for contender, reason in refused.items()} | timed.left_out
        timings += timed.timings
        ceilings += timed.ceilings
    memory: dict[Contender, int | None] = {}
    if settings.memory:
        memory = _memory(list(qualities), sized(request, max(settings.candidates)), progress)
    standings = tuple(_standing(c, quality, memory.get(c)) for c, quality in qualities.items())
    return Measured(standings, tuple(timings), peaks, left_out, tuple(ceilings))


def _reference(source: BaselineSource, request: Request) -> dict[str, Array]:
    (whole,) = baseline_contenders(["onnxruntime"], source)
    with whole.load(1) as loaded:
        return loaded(request)["whole"]()


def _load_all(
    contenders: Sequence[Contender],
    threads: int,
    request: Request,
    reference: Mapping[str, Array],
    stack: ExitStack,
    progress: ProgressCallback,
) -> tuple[dict[Contender, tuple[Loaded, Quality]], dict[Contender, str]]:
    """Load contenders until ``stack`` ends; return those with right scores, and why each other is left out."""
    ready: dict[Contender, tuple[Loaded, Quality]] = {}
    refused: dict[Contender, str] = {}
    for contender in contenders:
        progress(Progress("load", len(ready), len(contenders), f"{contender.name}, {threads} threads"))
        try:
            with ExitStack() as own:
                loaded = own.enter_context(contender.load(threads))
                ready[contender] = (loaded, _check(contender, loaded(request), reference))
                stack.enter_context(own.pop_all())
        except GateFailed:
            raise
        except Exception as error:  # baselines are third-party libraries and may raise anything
            if contender.must_hold:
                raise
            refused[contender] = _reason(error)
    return ready, refused


def _check(contender: Contender, calls: Mapping[Variant, Run], reference: Mapping[str, Array]) -> Quality:
    quality = compare(reference, calls["cold" if contender.ours else "whole"](), contender.precision)
    if quality.holds:
        return quality
    if contender.must_hold:
        raise GateFailed(
            f"{contender.name}: SQNR {quality.sqnr_db:.1f} dB against FP32 < {quality.floor_db:.0f} dB; find the "
            "tensor with 'ugsep bisect'"
        )
    if contender.precision == "fp32":
        raise UgsepError(
            f"scores differ from the bundle's (SQNR {quality.sqnr_db:.1f} dB < {quality.floor_db:.0f} dB); "
            "PyTorch baselines need the weights the bundle was built from"
        )
    saturated = "; random requests exceed its calibrated ranges" if contender.ours else ""
    raise UgsepError(f"SQNR {quality.sqnr_db:.1f} dB against FP32 < {quality.floor_db:.0f} dB{saturated}")


def _reason(error: Exception) -> str:
    if isinstance(error, UgsepError):
        return str(error)
    return f"{type(error).__name__}: {first_line(error)[:200]}"


@dataclass(frozen=True)
class _Plan:
    """What is timed at every thread count; ``plain`` is the pair whose GEMMs are timed alone."""

    request: Request
    settings: Settings
    costs: Costs
    plain: Contender | None

    @cached_property
    def gemms(self) -> list[Gemm]:
        """The constant GEMMs of the plain pair's item graph."""
        return constant_gemms(self.plain.item_graph) if self.plain and self.plain.item_graph else []


@dataclass(frozen=True)
class _Times:
    timings: list[Timing]
    ceilings: list[Ceiling]
    left_out: dict[str, str]


def _time_sizes(plan: _Plan, loaded: Mapping[Contender, Loaded], threads: int, progress: ProgressCallback) -> _Times:
    """Time every request size with one thread count."""
    sizes = plan.settings.candidates
    alone = gemms_alone(plan.gemms, threads)
    times = _Times([], [], {})
    for done, n in enumerate(sizes):
        progress(Progress(f"time, {threads} threads", done, len(sizes), f"N = {n}"))
        bound = alone(n) if alone is not None else None
        found, slow = _time(loaded, bound, sized(plan.request, n), plan.settings)
        times.left_out.update({f"{c.name} at N = {n}, threads = {threads}": reason for c, reason in slow.items()})
        gemms_ms = found.pop(_GEMMS_ALONE, None)
        if gemms_ms is not None and plan.plain is not None:
            times.ceilings.append(_ceiling(plan.gemms, threads, n, gemms_ms, found[plan.plain, "item"]))
        times.timings.extend(
            _timing(c, variant, threads, n, ms, plan.costs) for (c, variant), ms in found.items() if c is not None
        )
    progress(Progress(f"time, {threads} threads", len(sizes), len(sizes)))
    return times


def _time(
    loaded: Mapping[Contender, Loaded], gemms_alone: Callable[[], object] | None, request: Request, settings: Settings
) -> tuple[dict[tuple[Contender | None, Variant], Percentiles], dict[Contender, str]]:
    """Time all calls of all contenders, interleaved; return milliseconds, and why a baseline was not timed."""
    calls: dict[tuple[Contender | None, Variant], Callable[[], object]] = {
        (contender, variant): run for contender, ready in loaded.items() for variant, run in ready(request).items()
    }
    if gemms_alone is not None:
        calls[_GEMMS_ALONE] = gemms_alone
    whole = {key for key in calls if key[1] == "whole"}
    found = interleaved(calls, settings.rounds, settings.budget_s, whole)
    reason = f"{settings.rounds} rounds take longer than {settings.budget_s:.0f} s"
    return found, {c: reason for c, variant in calls if c is not None and (c, variant) not in found}


def _ceiling(gemms: Sequence[Gemm], threads: int, candidates: int, alone: Percentiles, item: Percentiles) -> Ceiling:
    flops = sum(gemm.flops(candidates) for gemm in gemms)
    return Ceiling(threads, candidates, flops / (alone.p50 / 1e3) / 1e9, alone.p50 / item.p50)


def _standing(contender: Contender, quality: Quality, memory_bytes: int | None) -> Standing:
    return Standing(
        contender.name,
        contender.ours,
        contender.chosen,
        contender.precision,
        contender.detail,
        quality,
        memory_bytes,
    )


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


def _memory(
    contenders: Sequence[Contender], request: Request, progress: ProgressCallback
) -> dict[Contender, int | None]:
    found: dict[Contender, int | None] = {}
    for done, contender in enumerate(contenders):
        progress(Progress("memory", done, len(contenders), contender.name))
        found[contender] = load_and_score_bytes(contender, request)
    progress(Progress("memory", len(contenders), len(contenders)))
    return found
