"""Two steps of ``ugsep build`` as commands of their own: the whole build takes seconds, and kills need many runs."""

from __future__ import annotations

import shutil
from pathlib import Path

import click

from engines.bundle.publish import publish
from engines.cli.group import Command, CommandGroup
from engines.compile.compile import compile_engine, serving_plans
from engines.recipes.recipe import load_recipe

PATH = click.Path(path_type=Path)


@click.group(cls=CommandGroup)
def main() -> None:
    """Steps of a build."""


@main.command("publish", cls=Command)
@click.argument("bundle", type=PATH)
@click.argument("destination", type=PATH)
def publish_command(bundle: Path, destination: Path) -> None:
    """Publish a copy of BUNDLE at DESTINATION."""
    with publish(destination) as work:
        shutil.copytree(bundle, work, dirs_exist_ok=True)


@main.command("engines", cls=Command)
@click.argument("bundle", type=PATH)
@click.argument("out", type=PATH)
@click.option("--cache", type=PATH, required=True)
def engines_command(bundle: Path, out: Path, cache: Path) -> None:
    """Compile the engines of BUNDLE again into OUT, emptied first as a build does, through a cache."""
    recipe = load_recipe(str(bundle / "recipe.yaml"))
    shutil.rmtree(out, ignore_errors=True)
    for plan in serving_plans(recipe):
        compile_engine(recipe, plan, bundle / "onnx" / f"{plan.side}.onnx", out / plan.side, cache)
