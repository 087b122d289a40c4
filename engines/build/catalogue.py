"""The table of all models: figures computed from their configs, and measurements from their bundles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.bundle.bundle import RECIPE
from engines.bundle.report_file import REPORT, read_report
from engines.recipes.recipe import Recipe, load_recipe
from engines.render.html import render
from engines.render.markdown import table, write_section
from engines.render.svg import COLOURS, new_axes, to_svg
from graphs.base.regular_file import is_regular_file

_HEADS = (
    "recipe", "parameters", "MFLOP per candidate", "user:item", "reusable", "limit", "speed-up at N", "of the limit",
    "request ms", "weights MB", "AUC FP32", "AUC change int8",
)  # fmt: skip
NOTE = (
    "parameters: without embedding tables. MFLOP per candidate and reusable share: active FLOPs, by formula. "
    "limit: the largest possible speed-up, by the FLOPs of the built graphs (including products hoisted out of the "
    "item graph), or by formula if there is no bundle. speed-up: the whole FP32 model in ONNX Runtime against "
    "one request (user and item), p50, 1 thread, interleaved. weights: FP32 and as served. AUC change: "
    "int8 against FP32 on held-out MovieLens days; not available for random weights."
)


@dataclass(frozen=True)
class RecipeFigures:
    """Figures from a bundle's report: p50 in milliseconds, bytes, and the AUC of the first labelled task, if any."""

    candidates: int
    speedup: float
    limit: float
    request_ms: float
    fp32_bytes: int
    quantized_bytes: int
    auc: float | None
    auc_change: float | None


def measured(bundle: Path, recipe: Recipe) -> RecipeFigures | None:
    """Return the figures of a recipe's bundle; None if it does not exist or was built with other settings.

    Raises:
        UgsepError: the report or the recipe in the bundle cannot be read.
    """
    if not is_regular_file(bundle / REPORT, "build the bundle again"):
        return None
    built = load_recipe(str(bundle / RECIPE))
    if (built.model, built.config) != (recipe.model, recipe.config):
        return None
    return from_report(read_report(bundle))


def from_report(report: dict[str, Any]) -> RecipeFigures:
    """Extract the figures of the table from a ``report.json``."""
    latency, weights, auc = report["latency"], report["weights"], report["auc"]
    task = next(iter(auc["fp32"]), None)
    before, after = (None, None) if task is None else (auc["fp32"][task], auc["quantized"].get(task))
    return RecipeFigures(
        candidates=latency["candidates"],
        speedup=latency["speedup"],
        limit=latency["limit"],
        request_ms=latency["request"]["p50"],
        fp32_bytes=weights["fp32_bytes"],
        quantized_bytes=weights["quantized_bytes"],
        auc=before,
        auc_change=None if before is None or after is None else after - before,
    )


def cells(row: ModelRow, found: RecipeFigures | None) -> tuple[str, ...]:
    """Return one row of the table as text."""
    static = (
        row.name, f"{row.parameters / 1e6:,.1f}M", f"{row.candidate_flops / 1e6:,.1f}", row.ratio,
        f"{row.reusable_share:.0%}",
    )  # fmt: skip
    if found is None:
        return (*static, f"{row.limit:.2f}x", *("-" for _ in _HEADS[6:]))
    return (
        *static,
        f"{found.limit:.2f}x",
        f"{found.speedup:.2f}x at {found.candidates}",
        f"{found.speedup / found.limit:.0%}",
        f"{found.request_ms:.3g}",
        f"{found.fp32_bytes / 1e6:.3g} -> {found.quantized_bytes / 1e6:.3g}",
        "-" if found.auc is None else f"{found.auc:.4f}",
        "-" if found.auc_change is None else f"{found.auc_change:+.1e}",
    )


def markdown(rows: Sequence[tuple[ModelRow, RecipeFigures | None]], machine: str) -> str:
    """Return the table as Markdown, with a note on its columns."""
    lines = [
        f"Measured on {machine}.",
        "",
        *table(_HEADS, [cells(row, found) for row, found in rows]),
        "",
        NOTE,
    ]
    return "\n".join(lines) + "\n"


def write_markdown(path: Path, rows: Sequence[tuple[ModelRow, RecipeFigures | None]], machine: str) -> None:
    """Write the table to its section of a Markdown file."""
    write_section(path, "models", markdown(rows, machine), "# Models\n")


def page(rows: Sequence[tuple[ModelRow, RecipeFigures | None]], machine: str) -> str:
    """Return the table and a plot of limits and speed-ups as a self-contained HTML page."""
    values = {
        "plot": speedups(rows),
        "heads": _HEADS,
        "rows": [cells(row, found) for row, found in rows],
        "note": NOTE,
        "machine": machine,
    }
    return render("models.html", values)


def speedups(rows: Sequence[tuple[ModelRow, RecipeFigures | None]]) -> str:
    """Draw the limit and the measured speed-up of every model with a bundle."""
    built = [(row.name, found) for row, found in rows if found is not None]
    title = "Speed-up over the whole FP32 model, and its limit by FLOPs"
    figure, axes = new_axes(title, 7.2, 0.9 + 0.34 * len(built))
    for y, (_, found) in enumerate(built):
        axes.barh(y, found.limit, 0.7, color=COLOURS["rest"], label=None if y else "limit by FLOPs")
        axes.barh(y, found.speedup, 0.4, color=COLOURS["user"], label=None if y else "measured")
        axes.annotate(f"{found.speedup:.2f}x", (0.05, y), va="center", fontsize=8, color="white")
    axes.set_yticks(range(len(built)), [name for name, _ in built], fontsize=8)
    axes.invert_yaxis()
    axes.axvline(1, color="#444", linewidth=0.8, linestyle="--")
    if built:
        axes.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=2)
    return to_svg(figure)


@dataclass(frozen=True)
class ModelRow:
    """One recipe: parameters (without embedding tables), FLOPs per user and per candidate, and the reusable share.

    ``limit`` is the speed-up limit by FLOPs at 256 candidates.
    """

    name: str
    architecture: str
    parameters: int
    user_flops: int
    candidate_flops: int
    ratio: str
    reusable_share: float
    limit: float


def model_row(name: str, recipe: Recipe, features: Path) -> ModelRow:
    """Return the row of a recipe, computed from its config.

    Raises:
        UgsepError: the recipe declares no features and ``features`` does not exist.
    """
    from engines.build.sources import random_config  # imports torch, which would slow down other commands

    config = random_config(recipe, features)
    counts = config.counts()
    user, item = counts.user.active_flops, counts.item.active_flops
    limit = 256 * (user + item) / (user + 256 * item)
    ratio = "{}:{}".format(*config.sides())
    return ModelRow(name, recipe.model, counts.parameters, user, item, ratio, counts.reusable_share, limit)
