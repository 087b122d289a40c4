"""The page of a streaming measurement: the memory of the process over time, one file that works offline."""

from __future__ import annotations

import html
from collections.abc import Sequence

from matplotlib.figure import Figure

from benchmarks.streaming_result import Measured
from engines.build.report_plots import COLOURS, to_svg
from engines.verify.checks import Check


def page(found: Measured, targets: Sequence[Check]) -> str:
    """Return the memory curve, the bounds and the figures as one HTML page."""
    title = f"{found.model}: {found.checkpoint_bytes / 1e9:.2f} GB of weights through {found.peak_bytes / 1e9:.2f} GB"
    rows = "".join(f"<li>{html.escape(str(t))}</li>" for t in targets)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        "<style>body{font:15px sans-serif;max-width:48rem;margin:2rem auto}svg{width:100%;height:auto}</style>"
        f"<h1>{html.escape(title)}</h1>{memory_curve(found)}<ul>{rows}</ul>"
        f"<p>One cold read of the checkpoint {found.read_seconds:.1f} s; export and quantization "
        f"{found.stream_seconds:.1f} s, from the start of the process to its end. The largest weight is "
        f"{found.largest_bytes / 1e6:.1f} MB, the output {found.output_bytes / 1e9:.3f} GB.</p></html>\n"
    )


def memory_curve(found: Measured) -> str:
    """Draw resident memory over time, the steps, and the size of the checkpoint for comparison."""
    figure = Figure(figsize=(7.2, 3.4))
    axes = figure.subplots()
    axes.set_title("Resident memory while exporting and quantizing", loc="left", fontsize=10)
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
    axes.tick_params(labelsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return to_svg(figure)
