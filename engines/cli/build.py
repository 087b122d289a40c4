"""``ugsep build``: from a model to a verified bundle."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from engines.cli.group import SEED, SHARE, as_typed, echo_text
from engines.cli.jagged import declared_features, jagged_options
from engines.compile.cache import default_root
from engines.recipes.recipe import Recipe, default_recipe, load_recipe
from engines.render.json_text import json_text
from graphs.base.errors import UgsepError
from graphs.base.progress import show_progress

if TYPE_CHECKING:
    from engines.build.sources import Sources


@dataclass(frozen=True)
class SourceOptions:
    """The options that select what a bundle is built from, as typed."""

    model: str
    checkpoint: Path | None
    init: str
    calibration: tuple[Path, ...]
    requests: tuple[Path, ...]
    features: Path | None
    user: str
    item: str
    recipe_file: str | None
    changes: tuple[str, ...]
    backend: str | None
    seed: int
    max_lengths: str = ""
    single: str = ""
    embeddings: str = "inside"

    @property
    def name(self) -> str:
        """The name of the model, taken from the recipe or the factory's file."""
        return Path(self.model.rpartition(":")[0] or self.model).stem

    @property
    def factory(self) -> str:
        """The model if it is a factory, otherwise an empty string."""
        from graphs.trace.factory import is_factory

        return self.model if is_factory(self.model) else ""

    def recipe(self) -> Recipe:
        """Return the recipe with the changes of ``--set`` and ``--backend`` applied.

        Raises:
            UgsepError: options conflict with each other or with the kind of model, or ``load_recipe`` fails.
        """
        recipe = self._factory_recipe() if self.factory else self._shipped_recipe()
        if self.init == "random" and self.checkpoint is not None:
            raise UgsepError("--init random and --checkpoint are mutually exclusive; pass one of them")
        if self.backend is None:
            return recipe
        return replace(recipe, serving=replace(recipe.serving, backend=self.backend))

    def sources(self) -> Sources:
        """Return what the build reads."""
        from engines.build.sources import Sources

        user, item = (tuple(n.strip() for n in names.split(",") if n.strip()) for names in (self.user, self.item))
        jagged = declared_features(self.max_lengths, self.single, self.embeddings)
        files = (self.checkpoint, self.calibration, self.requests, self.features)
        return Sources(*files, self.seed, self.factory, user, item, jagged)

    def _factory_recipe(self) -> Recipe:
        recipe = (
            load_recipe(self.recipe_file, self.changes)
            if self.recipe_file
            else default_recipe(self.name, self.changes)
        )
        if not self.user or not self.item:
            raise UgsepError("the sides of a factory's inputs are unknown; pass --user a,b --item c,d")
        if self.checkpoint is not None:
            raise UgsepError("a factory creates its own weights; remove --checkpoint")
        return recipe

    def _shipped_recipe(self) -> Recipe:
        recipe = load_recipe(self.model, self.changes)
        if self.user or self.item or self.recipe_file:
            raise UgsepError("--user, --item and --recipe apply only to factories; remove them for a recipe")
        if self.init == "checkpoint" and self.checkpoint is None:
            raise UgsepError("--checkpoint is missing; train one with 'make checkpoint', or pass --init random")
        return recipe


@click.command("build")
@click.argument("model")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Directory of config.json and model.safetensors.")
@click.option("--init", type=click.Choice(["checkpoint", "random"]), default="checkpoint", show_default=True,
              help="random: draw weights from --seed and mark the bundle synthetic.")  # fmt: skip
@click.option("--calibration", type=click.Path(path_type=Path), multiple=True, 
              help="Calibration requests (Parquet, Arrow, npz).")  # fmt: skip
@click.option("--requests", type=click.Path(path_type=Path), multiple=True, help="Held-out requests for the gates.")
@click.option("--features", type=click.Path(path_type=Path), help="features.json, for --init random.")
@click.option("--user", default="", help="User-side inputs of a factory's module, comma-separated.")
@click.option("--item", default="", help="Item-side inputs of a factory's module, comma-separated.")
@jagged_options
@click.option(
    "--recipe", "recipe_file", help="Recipe with the quantization, serving and gates for a factory's module."
)
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change a setting: config.user_tokens=12.")
@click.option("--out", type=click.Path(path_type=Path), help="Bundle directory  [default: build/MODEL]")
@click.option("--backend", help="Override the recipe's backend; auto picks the fastest.")
@click.option("--seed", type=SEED, default=0, show_default=True,
              help="Seed for random weights and synthetic requests.")  # fmt: skip
@click.option("--min-reuse", type=SHARE, default=0.0, show_default=True,
              help="Fail if a smaller share of the FLOPs runs once per request.")  # fmt: skip
@click.option("--force", is_flag=True, help="Build even if nothing changed.")
@click.option("--cache/--no-cache", default=True, show_default=True, help="Reuse engines from the cache.")
@click.option("--json", "as_json", is_flag=True, help="Print report.json to stdout.")
def build_command(out: Path | None, min_reuse: float, force: bool, cache: bool, as_json: bool, **source: Any) -> None:
    """Build a bundle for MODEL: split, export, quantize, compile, verify.

    MODEL is a shipped recipe, a recipe file, or path/to/file.py:factory, where factory takes no arguments and returns
    (module, example_inputs).
    """
    from engines.build import pipeline

    options = SourceOptions(**source)
    recipe, sources = options.recipe(), options.sources()
    target, root = out or Path("build") / options.name, default_root(os.environ) if cache else None
    again = as_typed(click.get_current_context())
    # What the user's code prints is no part of the report.
    with redirect_stdout(sys.stderr), show_progress() as progress:
        outcome = pipeline.build(
            options.name, recipe, sources, target, min_reuse=min_reuse, force=force, cache=root, rebuild=again,
            progress=progress,
        )  # fmt: skip
    if as_json:
        click.echo(json_text(outcome.report))
        return
    if outcome.unchanged:
        echo_text(f"{outcome.bundle}: up to date, nothing changed")
    _show(outcome.bundle, outcome.report)


def _show(bundle: Path, report: Mapping[str, Any]) -> None:
    for check in report["targets"]:
        verdict = "ok" if check["passed"] else "FAILED"
        echo_text(f"  {verdict:6} {check['name']}: {_figure(check['value'])} (bound {_figure(check['bound'])})")
    latency = report["latency"]
    echo_text(
        f"{bundle}: {latency['speedup']:.2f}x over full FP32 at N = {latency['candidates']} "
        f"(limit {latency['limit']:.2f}x), request p50 {latency['request']['p50']:.2f} ms; see report.html"
    )


def _figure(value: float | None) -> str:
    return "not a number" if value is None else f"{value:.4g}"
