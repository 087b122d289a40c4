"""The plots of a benchmark as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from engines.bench.findings import break_even, counted
from engines.bench.ratios import RatioPoint
from engines.bench.result import BenchResult
from engines.render.svg import new_axes, to_svg

CHOSEN, CACHED, LIMIT = "#c1121f", "#f28482", "#5c6b73"
#: One colour per family of baselines; its members differ by marker.
_FAMILIES = {"pytorch": "#8d6cab", "torch-compile": "#8d6cab", "onnxruntime": "#2f6690", "openvino": "#2a9d8f"}
_MARKERS = "osD^vPX*"


def latency_over_candidates(result: BenchResult, threads: int) -> str:
    """Draw p50 over N for every baseline and for the bundle's engines, cold and cached; ours in red."""
    figure, axes = new_axes(f"Latency over N, {counted(threads)} (p50)", 7.2, 4.6, grid=True)
    here = [t for t in result.measured.timings if t.threads == threads]
    chosen = next(s.name for s in result.measured.standings if s.chosen)
    baselines = list(dict.fromkeys(t.name for t in here if t.variant == "whole"))
    seen: dict[str, int] = {}
    for name in baselines:
        family = next(f for f in _FAMILIES if name.startswith(f))
        colour = _FAMILIES[family]
        marker = _MARKERS[seen.get(colour, 0) % len(_MARKERS)]
        seen[colour] = seen.get(colour, 0) + 1
        _line(axes, [t for t in here if t.name == name], colour, marker, name, 1.0)
    best = result.sizes and max((s for s in result.sizes if s.threads == threads), key=lambda s: s.candidates).best
    if best and best != chosen:
        _line(axes, [t for t in here if t.name == best and t.variant == "cold"], "#e8985e", "s", best, 1.6)
    cold = [t for t in here if t.name == chosen and t.variant == "cold"]
    _line(axes, cold, CHOSEN, "o", "bundle, user computed", 2.4)
    _line(
        axes, [t for t in here if t.name == chosen and t.variant == "cached"], CACHED, "o", "bundle, user cached", 2.4
    )
    _candidates_axis(axes, [t.candidates for t in cold])
    axes.set_yscale("log")
    axes.set_ylabel("milliseconds per request (log)", fontsize=8)
    axes.legend(fontsize=7.5, frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return to_svg(figure)


def speedup_over_candidates(result: BenchResult, threads: int) -> str:
    """Draw the fastest baseline over the bundle, with the line at 1, the FLOP limit, and the break-even N."""
    figure, axes = new_axes(f"Fastest baseline over the bundle, {counted(threads)}", 6.4, 4.0, grid=True)
    here = sorted((s for s in result.sizes if s.threads == threads and s.baseline), key=lambda s: s.candidates)
    n = [s.candidates for s in here]
    axes.plot(n, [s.limit for s in here], "--", color=LIMIT, linewidth=1.2, label="FLOP limit of the split")
    axes.plot(n, [s.cached_speedup for s in here], "o-", color=CACHED, linewidth=1.8, label="user cached")
    axes.plot(n, [s.speedup for s in here], "o-", color=CHOSEN, linewidth=2.2, label="user computed")
    axes.axhline(1.0, color="#1d2b33", linewidth=1)
    even = break_even(here)
    if even is not None:
        axes.axvline(even, color=CHOSEN, linewidth=1, linestyle=":")
        axes.annotate(
            f" break-even N = {even:.0f}", (even, 1.0), xytext=(2, -11), textcoords="offset points", fontsize=8
        )
    for s in here:
        axes.annotate(f"{s.speedup:.2f}", (s.candidates, s.speedup), xytext=(0, 5), textcoords="offset points",
                      ha="center", fontsize=7.5)  # fmt: skip
    _candidates_axis(axes, n)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("times as fast", fontsize=8)
    axes.legend(fontsize=7.5, frameon=False)
    return to_svg(figure)


def roofline(result: BenchResult, threads: int) -> str:
    """Draw both engines of the bundle under the machine's roofline, at every N.

    Intensity counts weight bytes only, read once per call, so points are too far right if activations or cache misses
    matter.
    """
    figure, axes = new_axes(f"Roofline of both sides, {counted(threads)}", 6.4, 4.0, grid=True)
    peak = next(p for p in result.measured.peaks if p.threads == threads)
    chosen = next(s.name for s in result.measured.standings if s.chosen)
    here = [t for t in result.measured.timings if t.threads == threads and t.name == chosen]
    marks: list[tuple[float, float, str, str]] = []
    for t in here:
        if t.variant == "item":
            marks.append((t.gflops / t.weight_gb_s, t.gflops, f"item N = {t.candidates}", CHOSEN))
        elif t.variant == "user" and t.candidates == here[0].candidates:
            marks.append((t.gflops / t.weight_gb_s, t.gflops, "user", "#2f6690"))
    low = min([m[0] for m in marks], default=0.1) / 2
    high = max([m[0] for m in marks] + [2 * peak.gemm_gflops / peak.copy_gb_s]) * 2
    intensity = np.geomspace(low, high, 200)
    axes.plot(intensity, [peak.attainable(float(i)) for i in intensity], color=LIMIT, linewidth=1.4)
    axes.annotate(f"{peak.gemm_gflops:.0f} GFLOP/s, FP32 GEMM", (high, peak.gemm_gflops), xytext=(0, 4),
                  textcoords="offset points", ha="right", fontsize=8, color=LIMIT)  # fmt: skip
    middle = math.sqrt(low * peak.gemm_gflops / peak.copy_gb_s)
    axes.annotate(f"{peak.copy_gb_s:.0f} GB/s copy ", (middle, peak.attainable(middle)), xytext=(-2, 2),
                  textcoords="offset points", ha="right", fontsize=8, color=LIMIT)  # fmt: skip
    for x, y, label, colour in marks:
        axes.plot([x], [y], "o", color=colour, markersize=6)
        axes.annotate(label, (x, y), xytext=(4, -11), textcoords="offset points", fontsize=7.5)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("FLOPs per byte of weights read", fontsize=8)
    axes.set_ylabel("GFLOP/s (log)", fontsize=8)
    return to_svg(figure)


def speedup_over_ratio(points: Sequence[RatioPoint]) -> str:
    """Draw the speed-up over the ratio of user to item tokens, with the FLOP limit."""
    first = points[0]
    figure, axes = new_axes(
        f"Speed-up over user:item, N = {first.candidates} (RankMixer, user computed)", 6.4, 4.0, grid=True
    )
    x = np.arange(len(points))
    axes.plot(x, [p.limit for p in points], "--", color=LIMIT, linewidth=1.2, label="FLOP limit")
    axes.plot(
        x, [p.speedup for p in points], "o-", color=CHOSEN, linewidth=2.2, label="same engine, whole over split"
    )
    axes.plot(x, [p.best_speedup for p in points], "s-", color="#e8985e", linewidth=1.6,
              label="fastest baseline over our fastest")  # fmt: skip
    for tick, p in zip(x, points, strict=True):
        axes.annotate(f"{p.speedup:.2f}", (tick, p.speedup), xytext=(0, -13), textcoords="offset points",
                      ha="center", fontsize=7.5)  # fmt: skip
    axes.set_xticks(x, [ratio_label(p) for p in points])
    axes.set_ylim(bottom=0)
    axes.set_ylabel("times as fast", fontsize=8)
    axes.legend(fontsize=7.5, frameon=False)
    return to_svg(figure)


def ratio_label(point: RatioPoint) -> str:
    """Return user:item in lowest terms, with the token counts."""
    shared = math.gcd(point.user_tokens, point.item_tokens)
    ratio = f"{point.user_tokens // shared}:{point.item_tokens // shared}"
    return f"{ratio}\n({point.user_tokens} + {point.item_tokens})"


def _line(axes: Any, timings: Sequence[Any], colour: str, marker: str, label: str, width: float) -> None:
    axes.plot([t.candidates for t in timings], [t.ms.p50 for t in timings], marker=marker, markersize=4.5,
              color=colour, linewidth=width, label=label)  # fmt: skip


def _candidates_axis(axes: Any, candidates: Sequence[int]) -> None:
    axes.set_xscale("log")
    axes.set_xticks(list(candidates), [str(n) for n in candidates])
    axes.minorticks_off()
    axes.set_xlabel("candidates N (log)", fontsize=8)
