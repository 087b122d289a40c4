"""``ugsep models``: every shipped recipe with its size, cost per candidate and reusable share."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click
from rich.table import Table

from engines.build.catalogue import ModelRow, RecipeFigures, model_row
from engines.recipes.recipe import load_recipe, recipe_names
from engines.render.console import print_table
from graphs.base.errors import UgsepError

FEATURES = Path("build/data/movielens/features.json")


@click.command("models")
@click.option("--features", type=click.Path(path_type=Path),
              help=f"features.json for recipes that declare no features  [default: {FEATURES}]")  # fmt: skip
@click.option("--bundles", type=click.Path(path_type=Path, file_okay=False),
              help="Directory of bundles, e.g. build; adds the measurements of their reports.")  # fmt: skip
@click.option("--page", "page_file", type=click.Path(path_type=Path, dir_okay=False),
              help="Write the table to this Markdown file and an HTML page next to it; needs --bundles.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the rows as JSON.")
def models_command(features: Path | None, bundles: Path | None, page_file: Path | None, as_json: bool) -> None:
    """List the shipped recipes: parameters, FLOPs per candidate, user:item tokens, reusable share, speed-up limit."""
    from engines.build import catalogue

    if page_file is not None and bundles is None:
        raise UgsepError("--page needs measurements; pass the directory of the bundles, e.g. --bundles build")
    if bundles is not None and not bundles.is_dir():
        raise UgsepError(f"--bundles: '{bundles}' is not a directory; build one with 'make engines MODEL=zenith'")
    rows: list[tuple[ModelRow, catalogue.RecipeFigures | None]] = []
    waiting: list[str] = []
    for name in recipe_names():
        recipe = load_recipe(name)
        if "features" in recipe.config or features is not None or FEATURES.is_file():
            found = catalogue.measured(bundles / name, recipe) if bundles is not None else None
            rows.append((model_row(name, recipe, features or FEATURES), found))
        else:
            waiting.append(name)
    if page_file is not None:
        machine = _machine()
        catalogue.write_markdown(page_file, rows, machine)
        page_file.with_suffix(".html").write_text(catalogue.page(rows, machine), encoding="utf-8")
    if as_json:
        click.echo(json.dumps([asdict(row) | ({"measured": asdict(found)} if found else {}) for row, found in rows]))
        return
    _print(rows)
    click.echo("parameters: without embedding tables; limit: speed-up limit by FLOPs at 256 candidates")
    if waiting:
        click.echo(f"not listed, because their features require 'make data': {', '.join(waiting)}")


def _print(rows: Sequence[tuple[ModelRow, RecipeFigures | None]]) -> None:
    measured = any(found is not None for _, found in rows)
    table = Table(box=None, header_style="bold")
    titles = [
        "recipe",
        "architecture",
        "parameters",
        "MFLOP per user",
        "MFLOP per candidate",
        "user:item",
        "reusable",
        "limit",
    ]
    for title in titles + ["measured", "AUC change"] * measured:
        table.add_column(title, justify="left" if title in ("recipe", "architecture") else "right")
    for r, found in rows:
        cells = [
            r.name, r.architecture, f"{r.parameters / 1e6:,.1f}M", f"{r.user_flops / 1e6:,.1f}",
            f"{r.candidate_flops / 1e6:,.1f}", r.ratio, f"{r.reusable_share:.0%}", f"{r.limit:.2f}x",
        ]  # fmt: skip
        if measured:
            change = None if found is None else found.auc_change
            cells += ["-" if found is None else f"{found.speedup:.2f}x", "-" if change is None else f"{change:+.1e}"]
        table.add_row(*cells)
    print_table(table)


def _machine() -> str:
    from engines.bench.machine import this_machine

    here = this_machine()
    tools = ", ".join(f"{name} {here.tools[name]}" for name in ("torch", "onnxruntime") if name in here.tools)
    return f"{here.processor} ({here.isa}), {here.cores} cores; {tools}"
