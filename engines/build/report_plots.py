"""The plots of a build report, as inline SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from engines.backends.contract import Array
from engines.render.svg import COLOURS, new_axes, to_svg
from engines.verify.latency import RequestLatency


def error_distribution(errors: Mapping[str, Array], bound: float) -> str:
    """Draw the distribution of |score - FP32 score| for each variant, on a logarithmic axis."""
    figure, axes = new_axes("Score error against the FP32 model (logits)")
    floor = 1e-9
    edges = np.logspace(-9, 0, 91)
    for (name, values), colour in zip(errors.items(), (COLOURS["user"], COLOURS["item"]), strict=False):
        axes.hist(np.maximum(np.abs(values), floor), bins=edges, alpha=0.65, label=name, color=colour)
    axes.axvline(bound, color="#444", linewidth=1, linestyle="--")
    axes.annotate(f"split bound {bound:g}", (bound, 0.98), xycoords=("data", "axes fraction"), fontsize=8,
                  rotation=90, va="top", ha="right")  # fmt: skip
    axes.set_xscale("log")
    axes.set_xlabel("absolute error", fontsize=8)
    axes.set_ylabel("rows", fontsize=8)
    axes.legend(fontsize=8, frameon=False)
    return to_svg(figure)


def latency_bars(latency: Sequence[RequestLatency]) -> str:
    """Draw the p50 of full model, user, item and request for each request size, with whiskers to p99."""
    figure, axes = new_axes("Latency, one interleaved run (p50, whisker to p99)")
    series = ("full_fp32", "request", "item", "user")
    for offset, name in enumerate(series):
        heights = [getattr(r, name).p50 for r in latency]
        tops = [getattr(r, name).p99 - getattr(r, name).p50 for r in latency]
        xs = np.arange(len(latency)) + (offset - 1.5) * 0.2
        axes.bar(xs, heights, 0.19, yerr=[np.zeros(len(tops)), tops], ecolor="#777", label=name.replace("_", " "),
                 color=COLOURS["full" if name == "full_fp32" else name], error_kw={"elinewidth": 0.8})  # fmt: skip
        for x, height in zip(xs, heights, strict=True):
            axes.annotate(f"{height:.2f}", (x, height), ha="center", va="bottom", fontsize=6.5)
    axes.set_xticks(np.arange(len(latency)), [f"N = {r.candidates}" for r in latency])
    axes.set_yscale("log")
    axes.set_ylabel("milliseconds (log)", fontsize=8)
    axes.legend(fontsize=8, frameon=False)
    return to_svg(figure)


def time_shares(latency: Sequence[RequestLatency]) -> str:
    """Draw the breakdown of a request's time: user engine, item engine, everything else."""
    figure, axes = new_axes("Where a request's time goes (p50)", height=1.1 + 0.45 * len(latency))
    for row, r in enumerate(latency):
        rest = max(r.request.p50 - r.user.p50 - r.item.p50, 0.0)
        total = max(r.request.p50, r.user.p50 + r.item.p50)
        left = 0.0
        for name, value in (("user", r.user.p50), ("item", r.item.p50), ("rest", rest)):
            share = value / total
            axes.barh(row, share, left=left, color=COLOURS[name], label=name if row == 0 else None)
            if share > 0.08:
                axes.annotate(f"{name} {share:.0%}", (left + share / 2, row), ha="center", va="center", fontsize=8,
                              color="white" if name != "rest" else "black")  # fmt: skip
            left += share
    axes.set_yticks(range(len(latency)), [f"N = {r.candidates}" for r in latency])
    axes.set_xlim(0, 1)
    axes.xaxis.set_visible(False)
    return to_svg(figure)


def weight_sqnr(rows: Sequence[tuple[str, float]]) -> str:
    """Draw the SQNR of every int8 weight, lowest first: (name, dB)."""
    ordered = sorted(rows, key=lambda r: r[1])
    shown = ordered if len(ordered) <= 60 else ordered[:60]
    figure, axes = new_axes(
        f"SQNR of int8 weights in dB{'' if len(shown) == len(ordered) else ' (lowest 60)'}",
        height=0.8 + 0.17 * len(shown),
    )
    axes.barh(range(len(shown)), [v for _, v in shown], color=COLOURS["user"], height=0.7)
    axes.set_yticks(range(len(shown)), [n for n, _ in shown], fontsize=6.5)
    axes.invert_yaxis()
    return to_svg(figure)
