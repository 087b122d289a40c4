"""``ugsep schemes``: compare quantization schemes on finished bundles."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path

import click
from rich.table import Table

from engines.build.schemes import Comparison, SchemeTable, compare_schemes
from engines.bundle.bundle import Bundle
from engines.bundle.manifest import engine_for
from engines.compile.compile import EnginePlan, compile_engine, load_built, serving_plans
from engines.recipes.recipe import AUTO, Recipe
from engines.render.console import print_table
from engines.render.json_text import json_text
from graphs.base.errors import UgsepError, nearest
from graphs.base.names import SIDES, GraphSide
from graphs.base.progress import ProgressCallback, show_progress
from graphs.base.scratch import scratch_folder
from quant.calibration.calibrate import CALIBRATION_REQUESTS, calibrate
from quant.policy import policy_document, read_policy
from quant.requests.spec import Request
from quant.requests.synthetic import SYNTHETIC_CANDIDATES, SYNTHETIC_REQUESTS
from quant.schemes.schemes import CONFIGS, needs_grams


@click.command("schemes")
@click.argument("bundles", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--calibration", type=click.Path(), multiple=True, help="Calibration requests (Parquet, Arrow, npz).")
@click.option("--requests", type=click.Path(), multiple=True, help="Held-out requests to score.")
@click.option("--synthetic", is_flag=True, help="Use random requests; quality figures are then meaningless.")
@click.option("--limit", type=click.IntRange(min=1), help="Score at most N requests  [default: all]")
@click.option("--schemes", "names", default=",".join(CONFIGS), show_default=True, help="Comma-separated names.")
@click.option(
    "--policy",
    type=click.Path(path_type=Path),
    help="Precision per weight, as written by 'quant search' (YAML).",
)
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change a setting of the bundle's recipe.")
@click.option("--markdown", type=click.Path(path_type=Path), help="Also write the tables into this Markdown file.")
@click.option("--json", "as_json", is_flag=True, help="Print the tables as JSON.")
def schemes_command(
    bundles: tuple[Path, ...],
    calibration: tuple[str, ...],
    requests: tuple[str, ...],
    synthetic: bool,
    limit: int | None,
    names: str,
    policy: Path | None,
    changes: tuple[str, ...],
    markdown: Path | None,
    as_json: bool,
) -> None:
    """Quantize the FP32 graphs of BUNDLES with each scheme; compare scores, bytes and latency.

    Policy, precisions and threads are those of each bundle; the timings of its schemes are interleaved.
    """
    from engines.build.schemes_page import write_markdown

    if synthetic == bool(calibration and requests):
        raise UgsepError("pass either --calibration FILE and --requests FILE, or --synthetic")
    wanted = tuple(names.split(","))
    for name in wanted:
        if name not in CONFIGS:
            raise UgsepError(f"unknown scheme '{name}'{nearest(name, CONFIGS)}")
    with show_progress() as progress:
        opened = [Bundle.open(bundle) for bundle in bundles]
        recipes = [_recipe(bundle, policy, changes) for bundle in opened]
        tables = [
            _compare(bundle, recipe, calibration, requests, limit, wanted, progress)
            for bundle, recipe in zip(opened, recipes, strict=True)
        ]
    if markdown is not None:
        write_markdown(markdown, tables)
    if as_json:
        click.echo(json_text([t.to_json() for t in tables], indent=1))
        return
    for table in tables:
        _show(table)


def _recipe(bundle: Bundle, policy: Path | None, changes: Sequence[str]) -> Recipe:
    """Return the recipe of a bundle with the changes and the policy applied."""
    recipe = bundle.changed_recipe(changes)
    if policy is None:
        return recipe
    quantization = replace(recipe.quantization, policy=policy_document(read_policy(policy)))
    return replace(recipe, quantization=quantization)


def _compare(
    bundle: Bundle,
    recipe: Recipe,
    calibration: Sequence[str],
    requests: Sequence[str],
    limit: int | None,
    schemes: Sequence[str],
    progress: ProgressCallback,
) -> SchemeTable:
    from engines.verify.scores import full_engine_scores

    manifest = bundle.manifest
    sides: tuple[GraphSide, ...] = ("full", *SIDES)
    onnx = {side: bundle.onnx(side) for side in sides}
    if calibration:
        samples: Iterable[Request] = islice(bundle.read_requests(calibration), CALIBRATION_REQUESTS)
        rows = list(islice(bundle.read_requests(requests), limit))
    else:
        samples, held_out = (
            bundle.synthetic_requests(SYNTHETIC_REQUESTS, SYNTHETIC_CANDIDATES, seed) for seed in (0, 1)
        )
        rows = list(islice(held_out, limit))
    threads = recipe.serving.threads
    seen = calibrate(
        onnx["user"], onnx["item"], samples, threads=threads, gram=needs_grams(schemes), progress=progress,
        synthetic=not calibration or manifest.synthetic,
    )  # fmt: skip
    chosen = [engine_for(manifest, side).built for side in SIDES]  # what 'backend: auto' chose in the build
    plans = [EnginePlan(side, b.backend, b.precision) for side, b in zip(SIDES, chosen, strict=True)]
    if recipe.serving.backend != AUTO:
        plans = list(serving_plans(recipe))
    with scratch_folder(".ugsep-schemes-") as scratch:
        whole = scratch / "full"
        whole.mkdir()
        engine = compile_engine(
            recipe, EnginePlan("full", "onnxruntime", "fp32"), onnx["full"], whole, None, progress
        )
        with closing(load_built(engine, whole)) as runner:
            reference = full_engine_scores(runner, rows, progress)
        setup = Comparison(recipe, onnx, plans, seen, rows, reference, scratch, progress=progress)
        return compare_schemes(manifest.model, setup, schemes)


def _show(table: SchemeTable) -> None:
    shown = Table(
        "scheme", "weights dB", "served dB", "Kendall tau", "AUC change, weights", "AUC change, served", "bytes",
        "user ms", "user GB/s", "item ms", "seconds",
        title=f"{table.model}, N = {table.candidates}, copy bandwidth {table.copy_gb_s:.1f} GB/s",
    )  # fmt: skip
    for r in table.rows:
        changes = ("" if c is None else f"{c:+.1e}" for c in (r.weights_auc_change, r.served_auc_change))
        name = f"{r.scheme} (recipe)" if r.scheme == table.chosen else r.scheme
        quality = (f"{r.weights_db:.1f}", f"{r.served_db:.1f}", f"{r.kendall_tau:.5f}", *changes)
        cost = (
            f"{r.weight_bytes:,}",
            f"{r.user_ms:.3f}",
            f"{r.user_gb_s:.1f}",
            f"{r.item_ms:.2f}",
            f"{r.seconds:.1f}",
        )
        shown.add_row(name, *quality, *cost)
    print_table(shown)
