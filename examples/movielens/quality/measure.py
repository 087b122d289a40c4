"""The quality cost of UG-Sep: train every variant with several seeds, and quantize the last one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.build import pipeline
from engines.build.sources import Sources
from engines.recipes.recipe import Gates, load_recipe
from examples.movielens.quality.page import BASE, COMPENSATED, MASKED, QUANTIZED, WIDTH, Result
from examples.movielens.training.recipe import Recipe, Training
from examples.movielens.training.train import checkpoint
from graphs.base.config import parse
from graphs.base.errors import GateFailed
from graphs.base.progress import Progress, ProgressCallback, silent

MODELS = ("rankmixer", "zenith", "tokenmixer-large")
RATIOS = {"1:1": (8, 8), "3:1": (12, 4)}
# Small enough for all runs of the table to finish in about an hour on two cores; the recipes ship width 128.
SIZE: dict[str, Any] = {"width": WIDTH, "hidden": 2 * WIDTH, "tower": 32}


@dataclass(frozen=True)
class Variant:
    """One row of the table per model and ratio: a name and its settings."""

    name: str
    settings: dict[str, Any]


VARIANTS = (
    Variant(BASE, {"ug_sep": False, "compensation": False}),
    Variant(MASKED, {"ug_sep": True, "compensation": False}),
    Variant(COMPENSATED, {"ug_sep": True, "compensation": True}),
)


def measure_quality(
    data: Path,
    out: Path,
    models: Sequence[str],
    seeds: Sequence[int],
    threads: int,
    progress: ProgressCallback = silent,
) -> list[Result]:
    """Train every variant of every model and quantize the last one; a rerun reuses finished runs.

    Args:
        data: prepared requests.
        out: folder of the runs.
        models: recipe names.
        seeds: one training each.
        threads: torch threads per training.
        progress: called for every run.
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
        results.append(Result(model, "3:1", QUANTIZED, tuple(quantized), ()))
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
    # This run only measures quality, so the gates are off.
    gates = Gates(
        split_max_abs=1.0, sqnr_db=-400.0, kendall_tau=-1.0, max_probability=1.0, same_experts_probability=1.0,
        rerouted_rows=1.0, auc_change=1.0, invariance=1.0,
    )  # fmt: skip
    recipe = dataclasses.replace(shipped, serving=serving, gates=gates)
    sources = Sources(folder, (data / "calibration.parquet",), (data / "test.parquet",))
    bundle = folder.with_name(folder.name + "-bundle")
    try:
        report = pipeline.build(model, recipe, sources, bundle).report
    except GateFailed as error:
        raise GateFailed(f"{folder}: {error}") from error
    return float(report["auc"]["quantized"]["like"])
