"""The plots of ``docs/serving-benchmark.md``, as SVG."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engines.render.svg import COLOURS, new_axes, to_svg

_OURS, _OTHERS, _FLOOR = COLOURS["user"], COLOURS["full"], "#999"
_NAMED = {"warm cache": COLOURS["user"], "cold cache": COLOURS["item"], "whole model": COLOURS["full"]}


def overhead_plot(figures: Mapping[str, Any]) -> str:
    """Draw the overhead of every server as a bar."""
    found = {n: one["overhead_p50_ms"] for n, one in figures["contenders"].items() if n != "Ranker.score"}
    figure, axes = new_axes("Added to Ranker.score, p50, milliseconds", 6.4, 0.6 + 0.35 * len(found))
    names = list(reversed(found))
    colours = [
        _OURS if name.startswith("ugsep") else _FLOOR if name.startswith("floor") else _OTHERS for name in names
    ]
    axes.barh(names, [found[name] for name in names], color=colours)
    for at, name in enumerate(names):
        axes.annotate(f" {found[name]:.2f}", (max(0.0, found[name]), at), va="center", fontsize=8)
    return _document(to_svg(figure))


def latency_plot(figures: Mapping[str, Any]) -> str:
    """Draw p50 and p99 at the load, beside those of the ideal queue."""
    median = {name: one for name, one in figures["median"].items() if one}
    figure, axes = new_axes(f"At {figures['share']:.0%} of saturation, milliseconds", 6.4, 0.8 + 0.6 * len(median))
    for at, (name, one) in enumerate(reversed(median.items())):
        colour = _OURS if name.startswith("ugsep") else _OTHERS
        axes.plot([one["p50_ms"], one["p99_ms"]], [at, at], color=colour, linewidth=6, solid_capstyle="butt")
        axes.plot([one["measured_p50_ms"], one["measured_p99_ms"]], [at - 0.25] * 2, color="#444", linewidth=1.2)
    axes.set_yticks(range(len(median)), list(reversed(median)))
    axes.set_ylim(-0.6, len(median) - 0.4)
    axes.set_xlim(left=0)
    axes.set_xlabel("p50 to p99; thin: the ideal queue of the same arrivals and service times", fontsize=8)
    return _document(to_svg(figure))


def capacity_plot(figures: Mapping[str, Any]) -> str:
    """Draw p99 over the rate, as the staircases tried them."""
    figure, axes = new_axes("p99 over requests per second", grid=True)
    for name, steps in figures["steps"].items():
        tried = sorted((rate, p99) for rate, p99, _ in steps if p99 > 0)
        colour = _NAMED.get(name)
        axes.plot([r for r, _ in tried], [p for _, p in tried], "o", markersize=3, color=colour, label=name)
    axes.axhline(figures["p99_ms"], color="#444", linewidth=1, linestyle="--")
    axes.set_yscale("log")
    axes.set_xlim(left=0)
    axes.set_ylabel("milliseconds", fontsize=8)
    axes.legend(fontsize=8, frameon=False)
    return _document(to_svg(figure))


def soak_plot(figures: Mapping[str, Any]) -> str:
    """Draw the server's resident memory over time."""
    figure, axes = new_axes("Resident memory, MB", grid=True)
    minutes = [second / 60 for second in figures["sampled_seconds"]]
    axes.plot(minutes, figures["rss_mb"], color=_OURS, linewidth=1.2)
    axes.set_ylim(0, 1.15 * max(figures["rss_mb"]))
    axes.set_xlabel("minutes", fontsize=8)
    return _document(to_svg(figure))


def _document(svg: str) -> str:
    """Return the figure as a file of its own: on white, since a page's own background may be dark."""
    head, rest = svg.split(">", 1)
    return f'{head}>\n<rect width="100%" height="100%" fill="white"/>{rest}'
