"""Findings from the times: what is fastest at which size, from which N the split pays off, where a baseline wins."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from engines.bench.costs import Costs
from engines.bench.run import Measured, Timing


@dataclass(frozen=True)
class Size:
    """One request size at one thread count, p50 in milliseconds.

    ``chosen`` are the engines the bundle serves with, ``best`` is the fastest of our pairs; both with the user
    computed (cold) and cached. ``baseline`` is the fastest whole model, empty if none ran.
    """

    threads: int
    candidates: int
    limit: float
    chosen_ms: float
    chosen_cached_ms: float
    item_ms: float
    best: str
    best_ms: float
    best_cached_ms: float
    baseline: str
    baseline_ms: float

    @property
    def speedup(self) -> float:
        """Fastest baseline over the bundle's engines, user computed; NaN if none ran."""
        return self.baseline_ms / self.chosen_ms

    @property
    def best_speedup(self) -> float:
        """Fastest baseline over the fastest of our pairs, user computed."""
        return self.baseline_ms / self.best_ms

    @property
    def cached_speedup(self) -> float:
        """Fastest baseline over the bundle's engines, user cached."""
        return self.baseline_ms / self.chosen_cached_ms


def sizes(measured: Measured, costs: Costs, sqnr_db: float = 0.0) -> list[Size]:
    """Return one comparison per thread count and request size, in the order they were timed.

    Besides the bundle's own, only pairs that reach ``sqnr_db`` against FP32 can be the fastest.
    """
    ours = {s.name for s in measured.standings if s.ours and (s.chosen or s.quality.sqnr_db >= sqnr_db)}
    chosen = next(s.name for s in measured.standings if s.chosen)
    found = []
    for threads, candidates in dict.fromkeys((t.threads, t.candidates) for t in measured.timings):
        here = [t for t in measured.timings if (t.threads, t.candidates) == (threads, candidates)]
        by = {(t.name, t.variant): t.ms.p50 for t in here}
        best = min((t for t in here if t.name in ours and t.variant == "cold"), key=lambda t: t.ms.p50)
        whole = [t for t in here if t.variant == "whole"]
        baseline: Timing | None = min(whole, key=lambda t: t.ms.p50, default=None)
        found.append(
            Size(
                threads,
                candidates,
                costs.limit(candidates),
                by[chosen, "cold"],
                by[chosen, "cached"],
                by[chosen, "item"],
                best.name,
                best.ms.p50,
                by[best.name, "cached"],
                baseline.name if baseline else "",
                baseline.ms.p50 if baseline else math.nan,
            )
        )
    return found


@dataclass(frozen=True)
class Standoff:
    """One of our pairs against the fastest baseline at one size; p50 in milliseconds; ``role``: bundle or fastest."""

    name: str
    role: str
    ms: float
    cached_ms: float
    baseline_ms: float

    @property
    def speedup(self) -> float:
        """Fastest baseline over this pair, user computed."""
        return self.baseline_ms / self.ms

    @property
    def cached_speedup(self) -> float:
        """Fastest baseline over this pair, user cached."""
        return self.baseline_ms / self.cached_ms


def standoffs(measured: Measured, at: Size) -> list[Standoff]:
    """Compare each of our pairs with the fastest baseline at one size, fastest first."""
    by = {
        (t.name, t.variant): t.ms.p50
        for t in measured.timings
        if (t.threads, t.candidates) == (at.threads, at.candidates)
    }
    found = []
    for s in measured.standings:
        if s.ours:
            role = "bundle" if s.chosen else ""
            if s.name == at.best:
                role = "bundle and fastest" if s.chosen else "fastest"
            found.append(Standoff(s.name, role, by[s.name, "cold"], by[s.name, "cached"], at.baseline_ms))
    return sorted(found, key=lambda s: s.ms)


def headline(found: Sequence[Size]) -> list[Size]:
    """Return the size that the headline reports, once per thread count."""
    return [s for s in found if s.candidates == reported(found)]


def counted(threads: int) -> str:
    """Return ``1 thread``, ``2 threads``."""
    return f"{threads} thread{'s' if threads > 1 else ''}"


def break_even(sizes: Sequence[Size], speedup: str = "speedup") -> float | None:
    """Return the smallest N from which our request beats the fastest baseline at every larger size measured.

    The crossing is interpolated between sizes on logarithmic axes. None if a baseline wins at the largest size.
    ``speedup`` names the property of ``Size`` to compare.
    """
    ordered = sorted(sizes, key=lambda s: s.candidates)
    ratios = [float(getattr(s, speedup)) for s in ordered]
    if not ordered or not ratios[-1] >= 1.0:
        return None
    for (low, below), (high, above) in reversed(list(itertools.pairwise(zip(ordered, ratios, strict=True)))):
        if below < 1.0:
            share = -math.log(below) / (math.log(above) - math.log(below)) if above > below else 1.0
            return float(low.candidates * (high.candidates / low.candidates) ** share)
    return float(ordered[0].candidates)


def sentences(measured: Measured, found: Sequence[Size]) -> list[str]:
    """Return the result in words: headline, where a baseline wins, break-even, and our faster pairs."""
    said: list[str] = []
    for threads in dict.fromkeys(s.threads for s in found):
        here = [s for s in found if s.threads == threads]
        with_baseline = [s for s in here if s.baseline]
        if with_baseline:
            said += _against_baselines(with_baseline, counted(threads))
        largest = max(here, key=lambda s: s.candidates)
        over = largest.chosen_cached_ms / largest.item_ms
        said.append(
            f"With the user's state cached, a request of N = {largest.candidates} takes "
            f"{largest.chosen_cached_ms:.3g} ms, {over:.2f} times the item engine alone ({counted(threads)})."
        )
    for c in measured.ceilings:
        if c.candidates == reported(found):
            said.append(
                f"The GEMMs of the FP32 item engine, run alone, take {c.share:.0%} of its time ({c.gflops:.0f} "
                f"GFLOP/s) at N = {c.candidates}, {counted(c.threads)}."
            )
    return said


def _against_baselines(here: Sequence[Size], with_threads: str) -> list[str]:
    said = []
    main = next(s for s in here if s.candidates == reported(here))
    said.append(
        f"At N = {main.candidates}, {with_threads}, the fastest whole model, {main.baseline}, takes "
        f"{main.baseline_ms:.3g} ms. "
        f"The bundle answers in {main.chosen_ms:.3g} ms: {main.speedup:.2f} times as fast "
        f"({main.cached_speedup:.2f} with the user's state cached; FLOP limit of the split {main.limit:.2f})."
    )
    if main.best_ms < 0.95 * main.chosen_ms:
        said.append(
            f"The fastest of our pairs, {main.best}, which --backend auto can pick, answers in "
            f"{main.best_ms:.3g} ms: "
            f"{main.best_speedup:.2f} times as fast as the baseline (the bundle {main.speedup:.2f} times)."
        )
    for s in here:
        if s.speedup < 1.0:
            verdict = "no pair of ours is faster" if s.best_speedup < 1.0 else f"{s.best} would be faster"
            said.append(
                f"A baseline wins at N = {s.candidates}, {with_threads}: {s.baseline} takes {s.baseline_ms:.3g} ms, "
                f"the bundle {s.chosen_ms:.3g} ms ({1 / s.speedup:.2f} times as long); {verdict}."
            )
    if all(s.speedup >= 1.0 for s in here):
        said.append(f"No baseline wins at any measured size with {with_threads}.")
    even = break_even(here)
    if even is None:
        said.append(f"The split does not break even up to N = {here[-1].candidates} ({with_threads}).")
    elif even > min(s.candidates for s in here):
        said.append(f"The split pays off from about N = {even:.0f} ({with_threads}).")
    else:
        said.append(f"The split pays off from N = {even:.0f}, the smallest size measured ({with_threads}).")
    return said


def reported(found: Sequence[Size]) -> int:
    """Return the size the headline reports: 256, else the largest below it, else the smallest."""
    measured = sorted({s.candidates for s in found})
    below = [n for n in measured if n <= 256]
    return below[-1] if below else measured[0]
