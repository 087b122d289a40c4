"""The ``ugsep`` command: build bundles, look at models, check and use what was built."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import click

from engines.bundle.bundle import Bundle
from engines.bundle.files import unlisted_files
from engines.cli.bench import bench_command
from engines.cli.bisect import bisect_command
from engines.cli.cache import cache_command
from engines.cli.group import CommandGroup, as_typed
from engines.cli.inspect import inspect_command
from engines.cli.models import models_command
from engines.cli.routing import routing_command
from engines.cli.schemes import schemes_command
from engines.cli.split import split_command
from engines.cli.stream import random_checkpoint_command, stream_command
from engines.compile.cache import default_root
from engines.recipes.recipe import Recipe, load_recipe
from engines.render.json_text import json_text
from graphs.base.errors import GateFailed, UgsepError
from graphs.base.progress import show_progress
from quant.telemetry import disable_telemetry


@click.group(cls=CommandGroup)
@click.version_option(package_name="ugsep")
def main() -> None:
    """Compute the user once, the items many times: from a PyTorch ranking model to user and item engines."""
    disable_telemetry()


main.add_command(bench_command)
main.add_command(bisect_command)
main.add_command(cache_command)
main.add_command(inspect_command)
main.add_command(models_command)
main.add_command(routing_command)
main.add_command(schemes_command)
main.add_command(split_command)
main.add_command(stream_command)
main.add_command(random_checkpoint_command)


@main.command("build")
@click.argument("model")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Folder with config.json and model.safetensors.")
@click.option("--init", type=click.Choice(["checkpoint", "random"]), default="checkpoint", show_default=True,
              help="random: weights drawn from --seed; the bundle is marked synthetic.")  # fmt: skip
@click.option(
    "--calibration", type=click.Path(path_type=Path), multiple=True, help="Requests to calibrate on (Parquet)."
)
@click.option("--requests", type=click.Path(path_type=Path), multiple=True, help="Held-out requests for the gates.")
@click.option("--features", type=click.Path(path_type=Path), help="features.json, for --init random.")
@click.option("--user", default="", help="User-side inputs of a factory's module, comma-separated.")
@click.option("--item", default="", help="Item-side inputs of a factory's module, comma-separated.")
@click.option(
    "--recipe", "recipe_file", help="Recipe whose quantization, serving and gates a factory's module takes."
)
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change a setting: config.user_tokens=12.")
@click.option("--out", type=click.Path(path_type=Path), help="Bundle directory  [default: build/MODEL]")
@click.option("--backend", help="Serve with this backend instead of the recipe's; auto measures and picks.")
@click.option("--seed", default=0, show_default=True, help="Seed of random weights and synthetic requests.")
@click.option("--force", is_flag=True, help="Build even when nothing changed.")
@click.option("--cache/--no-cache", default=True, show_default=True, help="Take engines built before from the cache.")
@click.option("--json", "as_json", is_flag=True, help="Print report.json to stdout.")
def build_command(
    model: str,
    checkpoint: Path | None,
    init: str,
    calibration: tuple[Path, ...],
    requests: tuple[Path, ...],
    features: Path | None,
    user: str,
    item: str,
    recipe_file: str | None,
    changes: tuple[str, ...],
    out: Path | None,
    backend: str | None,
    seed: int,
    force: bool,
    cache: bool,
    as_json: bool,
) -> None:
    """Build the bundle of MODEL: split, export, quantize, compile, prove.

    MODEL is a shipped recipe, a recipe file, or path/to/file.py:factory, a function without arguments that returns
    (module, example_inputs).
    """
    from engines.build import pipeline
    from engines.build.sources import Sources
    from graphs.trace.factory import is_factory

    factory = model if is_factory(model) else ""
    name = Path(model.rpartition(":")[0] or model).stem
    if factory:
        recipe = load_recipe(recipe_file, changes) if recipe_file else Recipe(name)
        if not user or not item:
            raise UgsepError("a factory's inputs need sides; name them with --user a,b --item c,d")
    else:
        recipe = load_recipe(model, changes)
        if user or item or recipe_file:
            raise UgsepError("--user, --item and --recipe are for factories; a recipe's features declare their sides")
    if factory and checkpoint is not None:
        raise UgsepError("a factory makes its own weights; leave --checkpoint out")
    if not factory and init == "checkpoint" and checkpoint is None:
        raise UgsepError("no --checkpoint; train one with 'make checkpoint', or pass --init random")
    if init == "random" and checkpoint is not None:
        raise UgsepError("--init random and --checkpoint exclude each other; give one")
    if backend is not None:
        recipe = dataclasses.replace(recipe, serving=dataclasses.replace(recipe.serving, backend=backend))
    sides = [tuple(n.strip() for n in names.split(",") if n.strip()) for names in (user, item)]
    sources = Sources(checkpoint, calibration, requests, features, seed, factory, *sides)
    target, root = out or Path("build") / name, default_root(os.environ) if cache else None
    again = as_typed(click.get_current_context())
    with show_progress() as progress:
        outcome = pipeline.build(
            name, recipe, sources, target, force=force, cache=root, rebuild=again, progress=progress
        )  # fmt: skip
    if as_json:
        click.echo(json_text(outcome.report))
        return
    if outcome.unchanged:
        click.echo(f"{outcome.bundle}: up to date, nothing changed")
    for target in outcome.report["targets"]:
        verdict = "ok" if target["passed"] else "FAILED"
        click.echo(f"  {verdict:6} {target['name']}: {target['value']:.4g} (bound {target['bound']:.4g})")
    latency = outcome.report["latency"]
    click.echo(
        f"{outcome.bundle}: {latency['speedup']:.2f}x over full FP32 at N = {latency['candidates']} "
        f"(limit {latency['limit']:.2f}x), request p50 {latency['request']['p50']:.2f} ms; see report.html"
    )


@main.command("validate")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--requests", type=click.Path(path_type=Path), multiple=True, help="Held-out requests (Parquet).")
@click.option("--synthetic", is_flag=True, help="Random requests instead: parity and invariance only, no quality.")
@click.option("--seed", default=1, show_default=True, help="Seed of the synthetic requests.")
@click.option("--worst", type=click.Path(path_type=Path),
              help="Where the worst rows go when a gate fails  [default: BUNDLE.worst.npz]")  # fmt: skip
@click.option("--junit", type=click.Path(path_type=Path), help="Also write the gates as a JUnit XML file.")
@click.option("--json", "as_json", is_flag=True, help="Print the targets to stdout as JSON.")
def validate_command(
    bundle: Path,
    requests: tuple[Path, ...],
    synthetic: bool,
    seed: int,
    worst: Path | None,
    junit: Path | None,
    as_json: bool,
) -> None:
    """Check every gate of BUNDLE again: hashes, parity, AUC, invariance, latency targets."""
    from engines.verify.validate import how_to_reproduce, junit_xml, validate

    if bool(requests) == synthetic:
        raise UgsepError("give held-out requests with --requests FILE, or pass --synthetic, not both")
    rows = worst or bundle.absolute().with_name(f"{bundle.absolute().name}.worst.npz")
    again = how_to_reproduce(bundle, requests, seed)
    with show_progress() as progress:
        found = validate(bundle, requests, seed, progress, rows)
    if junit is not None:
        junit.write_text(junit_xml(bundle.name, found, again), encoding="utf-8")
    if as_json:
        click.echo(json_text({"passed": found.passed, "targets": [t.as_dict() for t in found.targets]}))
    else:
        for target in found.targets:
            click.echo(f"  {target}")
    broken = [str(t) for t in found.targets if not t.passed]
    if broken:
        click.echo(f"reproduce: {again}", err=True)
        click.echo(f"worst rows: {rows}; find the tensor: ugsep bisect {bundle} --requests {rows}", err=True)
        raise GateFailed(f"{bundle}: {'; '.join(broken)}")


@main.command("verify")
@click.argument("bundle", type=click.Path(path_type=Path))
def verify_command(bundle: Path) -> None:
    """Check every file of BUNDLE against its manifest; a file that it does not list is refused too."""
    manifest = Bundle.open(bundle).manifest
    if strange := unlisted_files(bundle, manifest.files):
        more = f" and {len(strange) - 1} more" if len(strange) > 1 else ""
        raise UgsepError(
            f"{bundle}: {ascii(strange[0])[1:-1]}{more} not in the manifest; remove it or build it again"
        )
    click.echo(f"{bundle}: {len(manifest.files)} files of '{manifest.model}' are as the manifest says")
