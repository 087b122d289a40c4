"""Command line of the example: ``python -m examples.movielens data``, ``checkpoint --model NAME`` and ``quality``."""

from __future__ import annotations

from pathlib import Path

import click

from engines.cli.group import CommandGroup
from engines.recipes.recipe import load_recipe
from examples.movielens.data.prepare import prepare
from examples.movielens.training.recipe import Recipe, Training
from examples.movielens.training.train import checkpoint
from graphs.base.config import parse
from graphs.base.progress import show_progress
from graphs.models.table import model_class

DATA = Path("build/data")
CHECKPOINTS = Path("build/checkpoints")

data_option = click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    default=DATA,
    show_default=True,
    help="Folder for the downloaded and prepared data.",
)


@click.group(cls=CommandGroup)
def main() -> None:
    """MovieLens-100K: prepare request files and train a model on them."""


@main.command("data")
@data_option
def data_command(data: Path) -> None:
    """Download the ratings and write train, calibration and test requests."""
    with show_progress() as progress:
        out = prepare(data, progress)
    click.echo(f"requests: {out}")


@main.command("checkpoint")
@click.option("--model", required=True, help="A shipped recipe, for example zenith, or a recipe file (.yaml).")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help=f"Folder for the checkpoint.  [default: {CHECKPOINTS}/MODEL]",
)
@data_option
def checkpoint_command(model: str, out: Path | None, data: Path) -> None:
    """Train a model and print its AUC and log-loss on the held-out days."""
    shipped = load_recipe(model)
    model_class(shipped.model)  # reject an unknown name before anything is downloaded
    recipe = Recipe(dict(shipped.config), parse(Training, shipped.training, f"recipe '{model}': training"))
    folder = out if out is not None else CHECKPOINTS / Path(model).stem
    with show_progress() as progress:
        prepared = prepare(data, progress)
        metrics = checkpoint(shipped.model, recipe, prepared, folder, progress)
    for task, value in metrics["test"]["auc"].items():
        loss = metrics["test"]["log_loss"][task]
        click.echo(f"{task}: AUC {value:.4f}, log-loss {loss:.4f} on the held-out days")
    click.echo(f"checkpoint: {folder} ({metrics['parameters']:,} parameters, {metrics['seconds']} s)")


@main.command("quality")
@click.option(
    "--model", "models", multiple=True, help="Recipes to train  [default: rankmixer, zenith, tokenmixer-large]"
)
@click.option("--seed", "seeds", type=int, multiple=True, default=(0, 1, 2), show_default=True)
@click.option("--threads", default=1, show_default=True, help="Threads per training; another number retrains.")
@click.option("--page", type=click.Path(path_type=Path), default=Path("docs/quality.md"), show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("build/quality"), show_default=True)
@data_option
def quality_command(
    models: tuple[str, ...], seeds: tuple[int, ...], threads: int, page: Path, out: Path, data: Path
) -> None:
    """Train unmasked, masked and compensated models and write docs/quality.md; resumes an interrupted run."""
    from examples.movielens.quality import measure
    from examples.movielens.quality import page as quality_page

    with show_progress() as progress:
        prepared = prepare(data, progress)
        results = measure.measure_quality(prepared, out, models or measure.MODELS, seeds, threads, progress)
    quality_page.write(results, seeds, page)
    click.echo(f"quality: {page}")


if __name__ == "__main__":
    main()
