"""The page of a streaming measurement: memory over time, in one self-contained HTML file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.streaming_result import StreamingRun
from engines.render.html import render
from engines.render.svg import COLOURS, new_axes, to_svg
from engines.verify.checks import Check


def page(found: StreamingRun, checks: Sequence[Check]) -> str:
    """Return the memory curve, the checks and the figures as one HTML page."""
    title = f"{found.model}: {found.checkpoint_bytes / 1e9:.2f} GB of weights through {found.peak_bytes / 1e9:.2f} GB"
    values = {"title": title, "curve": memory_curve(found), "checks": checks, "found": found}
    return render("streaming.html", values, folder=Path(__file__).parent)


def memory_curve(found: StreamingRun) -> str:
    """Draw resident memory over time, the steps, and the size of the checkpoint for comparison."""
    figure, axes = new_axes("Resident memory while exporting and quantizing", 7.2)
    seconds, sizes = [at for at, _ in found.curve], [size / 1e9 for _, size in found.curve]
    axes.fill_between(seconds, sizes, color=COLOURS["user"], alpha=0.35, linewidth=0)
    axes.plot(seconds, sizes, color=COLOURS["user"], linewidth=1.2)
    top = max(3.3, max(sizes, default=0.0) * 1.1)
    axes.axhline(3 * 2**30 / 1e9, color="#444", linewidth=1, linestyle="--")
    axes.annotate("bound, 3 GiB", (0, 3 * 2**30 / 1e9), fontsize=8, va="bottom")
    for step, at in found.steps.items():
        axes.axvline(at, color="#999", linewidth=0.6)
        axes.annotate(step, (at, top * 0.98), fontsize=7, rotation=90, va="top", ha="right")
    axes.set_ylim(0, top)
    axes.set_xlim(0, max(seconds, default=1.0))
    axes.set_xlabel(f"seconds; the checkpoint is {found.checkpoint_bytes / 1e9:.2f} GB", fontsize=8)
    axes.set_ylabel("GB", fontsize=8)
    return to_svg(figure)
