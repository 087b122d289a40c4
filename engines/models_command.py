"""``ugsep models``: every shipped recipe with its size, its cost per candidate and what UG-Sep can reuse."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from engines.recipe import Recipe, load_recipe, recipe_names

FEATURES = Path("build/data/movielens/features.json")


@dataclass(frozen=True)
class ModelRow:
    """One recipe: dense parameters (no embedding tables), FLOPs per user and per candidate, and the reusable share.

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
    """Return the row of a recipe, from formulas; nothing is built.

    Raises:
        UgsepError: the recipe declares no features and ``features`` does not exist.
    """
    from engines.sources import random_config  # imports torch, which other commands need not wait for

    config = random_config(recipe, features)
    counts = config.counts()
    user, item = counts.user.active_flops, counts.item.active_flops
    limit = 256 * (user + item) / (user + 256 * item)
    ratio = f"{config.user_tokens}:{config.item_tokens}" if config.ug_sep else f"0:{config.tokens}"
    return ModelRow(name, recipe.model, counts.parameters, user, item, ratio, counts.reusable_share, limit)


@click.command("models")
@click.option("--features", type=click.Path(path_type=Path), default=FEATURES, show_default=True,
              help="Features of the recipes that declare none.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the rows as JSON.")
def models_command(features: Path, as_json: bool) -> None:
    """List the shipped recipes: parameters, FLOPs per candidate, user:item tokens, reusable share."""
    rows: list[ModelRow] = []
    waiting: list[str] = []
    for name in recipe_names():
        recipe = load_recipe(name)
        if "features" in recipe.config or features.is_file():
            rows.append(model_row(name, recipe, features))
        else:
            waiting.append(name)
    if as_json:
        click.echo(json.dumps([asdict(r) for r in rows]))
        return
    table = Table(box=None, header_style="bold")
    for title in (
        "recipe",
        "architecture",
        "parameters",
        "MFLOP per user",
        "MFLOP per candidate",
        "U:G",
        "reusable",
        "limit",
    ):
        table.add_column(title, justify="left" if title in ("recipe", "architecture") else "right")
    for r in rows:
        table.add_row(
            r.name, r.architecture, f"{r.parameters / 1e6:,.1f}M", f"{r.user_flops / 1e6:,.1f}",
            f"{r.candidate_flops / 1e6:,.1f}", r.ratio, f"{r.reusable_share:.0%}", f"{r.limit:.2f}x",
        )  # fmt: skip
    Console(width=120 if not Console().is_terminal else None).print(table)
    click.echo(
        "parameters: dense ones, embedding tables not counted; limit: of the speed-up at 256 candidates, by FLOPs"
    )
    if waiting:
        click.echo(f"not listed, their features come from data ('make data'): {', '.join(waiting)}")
