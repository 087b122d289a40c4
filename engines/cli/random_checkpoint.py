"""``ugsep random-checkpoint``: a full-size checkpoint with random weights, for testing."""

from __future__ import annotations

from pathlib import Path

import click

from engines.cli.group import SEED
from engines.recipes.recipe import load_recipe
from graphs.base.progress import show_progress


@click.command("random-checkpoint")
@click.argument("model")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Directory for the checkpoint.")
@click.option("--dtype", type=click.Choice(["bf16", "fp32"]), default="bf16", show_default=True)
@click.option("--shard-mb", type=click.IntRange(min=1), default=1000, show_default=True, help="Shard size in MB.")
@click.option("--seed", type=SEED, default=0, show_default=True)
@click.option("--features", type=click.Path(path_type=Path), help="features.json, for recipes without features.")
def random_checkpoint_command(
    model: str, out: Path, dtype: str, shard_mb: int, seed: int, features: Path | None
) -> None:
    """Write a checkpoint of MODEL (a recipe) with random weights, shard by shard."""
    from engines.build.random_checkpoint import write_random_checkpoint

    with show_progress() as progress:
        shards = write_random_checkpoint(
            load_recipe(model), out, dtype=dtype, shard_bytes=shard_mb * 10**6, seed=seed, features=features,
            progress=progress,
        )  # fmt: skip
    click.echo(f"{out}: {len(shards)} files, {sum(s.stat().st_size for s in shards) / 1e9:.2f} GB")
