"""What UG-Sep costs in quality: train the variants, three seeds each, quantize the last, and write it down."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from engines import pipeline
from engines.recipe import Gates, load_recipe
from engines.sources import Sources
from examples.movielens.recipe import Recipe, Training
from examples.movielens.train import checkpoint
from graphs.config import parse
from graphs.errors import GateFailed
from graphs.progress import Progress, ProgressCallback, silent

MODELS = ("rankmixer", "zenith", "tokenmixer-large")
RATIOS = {"1:1": (8, 8), "3:1": (12, 4)}
# Small enough that all runs of the table fit in about an hour on two cores; the recipes ship width 128.
SIZE: dict[str, Any] = {"width": 64, "hidden": 128, "tower": 32}
# UG-Sep (2602.10455): AUC change in per cent, from models.md section 7.
PAPER = {"UG-Sep": {"3:1": "-0.06 %"}, "UG-Sep + compensation": {"1:1": "-0.004 .. -0.024 %", "3:1": "-0.02 %"}}


@dataclass(frozen=True)
class Variant:
    """One column of the table: a name and the settings that make it."""

    name: str
    settings: dict[str, Any]


VARIANTS = (
    Variant("unmasked", {"ug_sep": False, "compensation": False}),
    Variant("UG-Sep", {"ug_sep": True, "compensation": False}),
    Variant("UG-Sep + compensation", {"ug_sep": True, "compensation": True}),
)


@dataclass(frozen=True)
class Result:
    """Test AUC and log-loss of one variant of one model at one ratio, by seed."""

    model: str
    ratio: str
    variant: str
    auc: tuple[float, ...]
    log_loss: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean AUC over the seeds."""
        return statistics.fmean(self.auc)

    @property
    def spread(self) -> float:
        """Standard deviation of the AUC over the seeds, 0 for a single one."""
        return statistics.stdev(self.auc) if len(self.auc) > 1 else 0.0


def measure(
    data: Path,
    out: Path,
    models: Sequence[str],
    seeds: Sequence[int],
    threads: int,
    progress: ProgressCallback = silent,
) -> list[Result]:
    """Train every variant of every model (finished runs are kept, so a stopped command goes on), then W8 of the last.

    Args:
        data: prepared requests.
        out: folder of the runs.
        models: recipe names.
        seeds: one training each.
        threads: torch threads per training.
        progress: told about every run.
    """
    results: list[Result] = []
    total = len(models) * len(RATIOS) * len(VARIANTS) * len(seeds)
    done = 0
    for model in models:
        for ratio, tokens in RATIOS.items():
            for variant in VARIANTS:
                found = []
                for seed in seeds:
                    progress(Progress("quality", done, total, f"{model} {ratio} {variant.name} seed {seed}"))
                    found.append(
                        _train(data, _folder(out, model, ratio, variant, seed), model, tokens, variant, seed, threads)
                    )
                    done += 1
                results.append(_result(model, ratio, variant.name, found))
        last = [_folder(out, model, "3:1", VARIANTS[-1], seed) for seed in seeds]
        quantized = [_quantized_auc(data, folder, model) for folder in last]
        results.append(Result(model, "3:1", "UG-Sep + compensation, W8", tuple(quantized), ()))
        progress(Progress("quality", done, total, f"{model} quantized"))
    return results


def _folder(out: Path, model: str, ratio: str, variant: Variant, seed: int) -> Path:
    name = variant.name.lower().replace(" ", "").replace("+", "-")
    return out / model / f"{ratio.replace(':', 'to')}-{name}-seed{seed}"


def _train(
    data: Path, folder: Path, model: str, tokens: tuple[int, int], variant: Variant, seed: int, threads: int
) -> dict[str, Any]:
    shipped = load_recipe(model)
    sizes = {**SIZE, "user_tokens": tokens[0], "item_tokens": tokens[1]}
    training = parse(Training, {**shipped.training, "seed": seed, "threads": threads}, f"recipe '{model}': training")
    recipe = Recipe({**shipped.config, **sizes, **variant.settings}, training)
    return checkpoint(shipped.model, recipe, data, folder)


def _result(model: str, ratio: str, variant: str, metrics: Sequence[dict[str, Any]]) -> Result:
    aucs = tuple(float(m["test"]["auc"]["like"]) for m in metrics)
    return Result(model, ratio, variant, aucs, tuple(float(m["test"]["log_loss"]["like"]) for m in metrics))


def _quantized_auc(data: Path, folder: Path, model: str) -> float:
    """Build the bundle of a checkpoint and return the AUC of its int8 engines on the test requests."""
    shipped = load_recipe(model)
    serving = dataclasses.replace(shipped.serving, compile_for=(), candidates=(64,))
    # Quality is what is measured here, so no bound may stop it.
    gates = Gates(1.0, -400.0, -1.0, 1.0, 1.0, 1.0)
    recipe = dataclasses.replace(shipped, serving=serving, gates=gates)
    sources = Sources(folder, (data / "calibration.parquet",), (data / "test.parquet",))
    bundle = folder.with_name(folder.name + "-bundle")
    try:
        report = pipeline.build(model, recipe, sources, bundle).report
    except GateFailed as error:
        raise GateFailed(f"{folder}: {error}") from error
    return float(report["auc"]["quantized"]["like"])


def markdown(results: Sequence[Result], seeds: Sequence[int], plot: str) -> str:
    """Return the page: one table with AUC mean and spread, change against unmasked, and the paper's figure."""
    base = {(r.model, r.ratio): r.mean for r in results if r.variant == "unmasked"}
    lines = [
        "# Quality on MovieLens-100K",
        "",
        f"Test AUC of the last 22 days, seeds {', '.join(map(str, seeds))}, width {SIZE['width']}, made by",
        "`make quality`. The change is relative to the unmasked model with the same tokens. With 9,359 test rows the",
        "standard error of one AUC is about 0.005, so a relative change below about 0.5 % is noise here; the paper's",
        "figures come from production traffic, where 0.01 % can be told apart.",
        "",
        "| model | U:G | variant | AUC mean | spread | change | log-loss | paper |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in results:
        change = f"{100 * (r.mean / base[r.model, r.ratio] - 1):+.3f} %" if r.variant != "unmasked" else ""
        loss = f"{statistics.fmean(r.log_loss):.4f}" if r.log_loss else ""
        paper = PAPER.get(r.variant, {}).get(r.ratio, "")
        lines.append(
            f"| {r.model} | {r.ratio} | {r.variant} | {r.mean:.4f} | {r.spread:.4f} | {change} | {loss} | {paper} |"
        )
    return "\n".join([*lines, "", f"![AUC by variant]({plot})", ""])


def draw(results: Sequence[Result], path: Path) -> None:
    """Write the plot: AUC of every seed and the mean, by model, ratio and variant."""
    figure = Figure(figsize=(9, 0.34 * len(results) + 1))
    axes = figure.subplots()
    for row, r in enumerate(results):
        axes.plot(r.auc, [row] * len(r.auc), "o", color="#2a9d8f", alpha=0.6)
        axes.plot([r.mean], [row], "|", color="#e76f51", markersize=16, markeredgewidth=2)
    axes.set_yticks(range(len(results)), [f"{r.model} {r.ratio} {r.variant}" for r in results], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("test AUC (dot: seed, bar: mean)")
    figure.savefig(path, format="svg", bbox_inches="tight", metadata={"Date": None})


def write(results: Sequence[Result], seeds: Sequence[int], page: Path) -> None:
    """Write the page, the plot beside it, and the numbers as JSON."""
    page.parent.mkdir(parents=True, exist_ok=True)
    draw(results, page.with_suffix(".svg"))
    page.write_text(markdown(results, seeds, page.with_suffix(".svg").name))
    page.with_suffix(".json").write_text(json.dumps([dataclasses.asdict(r) for r in results], indent=1) + "\n")
