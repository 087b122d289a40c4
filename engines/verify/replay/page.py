"""The findings of a replay as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from engines.backends.contract import Array
from engines.measure.percentiles import Percentiles
from engines.render.html import render
from engines.render.svg import COLOURS, new_axes, to_svg
from engines.verify.replay.drift import TaskDrift
from engines.verify.replay.latency import ReplayLatency
from engines.verify.replay.replay import Replay

__all__ = ["replay_page"]

_FLOOR = 1e-9  # smaller differences, and none, are drawn here


def replay_page(found: Replay) -> str:
    """Return the page."""
    bounds = found.bounds
    drawings = {
        "drift": [_drift(task, drift.differences, bounds.drift) for task, drift in found.tasks.items()],
        "taus": [_taus(task, drift, bounds.tau) for task, drift in found.tasks.items()],
        "latency": _latency(found.latency),
    }
    return render("replay.html", {"r": found, "drawings": drawings}, {"short": lambda value: f"{value:.3g}"})


def _drift(task: str, differences: Array, bound: float | None) -> str:
    figure, axes = new_axes(f"Score drift, {task} (logits, all candidates)", 5.6, 3.0)
    sizes = np.maximum(np.abs(differences[np.isfinite(differences)]), _FLOOR)
    top = max(1.0, float(sizes.max(initial=_FLOOR)), bound or 0.0)
    axes.hist(sizes, bins=np.geomspace(_FLOOR, top * 1.01, 91), color=COLOURS["user"])
    axes.set_xscale("log")
    axes.set_xlim(_FLOOR * 0.8, top * 1.3)
    if bound:
        axes.axvline(bound, color="#444", linewidth=1, linestyle="--")
    same = int((differences == 0).sum())
    axes.set_xlabel(f"|difference|; {same:,} of {len(differences):,} are equal, drawn at {_FLOOR:g}", fontsize=8)
    axes.set_ylabel("candidates", fontsize=8)
    return to_svg(figure)


def _taus(task: str, drift: TaskDrift, bound: float) -> str:
    figure, axes = new_axes(f"Rank agreement, {task} (requests)", 5.6, 3.0)
    # Of two candidates that change places tau is -1: a few such requests must not squeeze all others.
    least = min(float(np.quantile(drift.taus, 0.01)) if drift.taus.size else 1.0, bound, 0.95)
    below = int((drift.taus < least).sum())
    axes.hist(np.maximum(drift.taus, least), bins=np.linspace(least, 1.0, 61).tolist(), color=COLOURS["item"])
    axes.axvline(bound, color="#444", linewidth=1, linestyle="--")
    axes.set_xlim(least - 0.03 * (1 - least), 1 + 0.03 * (1 - least))
    lower = f"; {below} below {least:.3g}, drawn there" if below else ""
    axes.set_xlabel(f"Kendall tau within the request; dashed: bound of the mean{lower}", fontsize=8)
    axes.set_ylabel("requests", fontsize=8)
    return to_svg(figure)


def _latency(latency: Mapping[str, ReplayLatency]) -> str:
    figure, axes = new_axes(
        "Latency in ms, the same requests in turn (p50, whisker to p99)", 5.6, 0.9 + 0.7 * len(latency)
    )
    kinds = ((-0.2, "computed", "request"), (0.2, "cached", "user"))
    for row, times in enumerate(latency.values()):
        for offset, kind, colour in kinds:
            ms: Percentiles = getattr(times, kind)
            label = f"user {kind}" if row == 0 else None
            axes.barh(row + offset, ms.p50, 0.38, xerr=[[0.0], [max(ms.p99 - ms.p50, 0.0)]], ecolor="#777",
                      color=COLOURS[colour], label=label, error_kw={"elinewidth": 0.8})  # fmt: skip
            axes.annotate(f"{ms.p50:.3g}", (max(ms.p50, ms.p99), row + offset), xytext=(5, 0),
                          textcoords="offset points", fontsize=8, va="center")  # fmt: skip
    names = ["reference", "compared"] if len(latency) > 1 else ["compared"]
    axes.set_yticks(range(len(latency)), names)
    axes.invert_yaxis()
    axes.legend(fontsize=8, frameon=False, ncols=2, loc="upper left", bbox_to_anchor=(0.0, -0.12))
    return to_svg(figure)
