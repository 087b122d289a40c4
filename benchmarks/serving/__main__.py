"""``python -m benchmarks.serving CAMPAIGN``: one campaign, all that have no result yet, or the report."""

from __future__ import annotations

import dataclasses
import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import click

from benchmarks.serving.campaigns.bench import Bench, Result, load_results, save, two_cores
from benchmarks.serving.page import write_page
from engines.cli.group import Command, CommandGroup
from graphs.base.errors import GateFailed, UgsepError

PATH = click.Path(path_type=Path)
Campaign = Callable[[Bench], Result]


def campaigns(other: Path | None, minutes: float) -> Mapping[str, Campaign]:
    """Return the campaigns in the order they run; each is imported when it is called."""

    def lazily(module: str, name: str, *arguments: object) -> Campaign:
        def campaign(bench: Bench) -> Result:
            found: Result = getattr(importlib.import_module(module), name)(bench, *arguments)
            return found

        return campaign

    def swaps(bench: Bench) -> Result:
        return lazily("benchmarks.serving.campaigns.swaps", "swaps", other or other_bundle(bench))(bench)

    return {
        "overhead": lazily("benchmarks.serving.campaigns.overhead", "overhead"),
        "latency": lazily("benchmarks.serving.campaigns.latency", "latency"),
        "capacity": lazily("benchmarks.serving.campaigns.capacity", "capacity"),
        "batching": lazily("benchmarks.serving.campaigns.batching", "batching"),
        "overload": lazily("benchmarks.serving.campaigns.overload", "overload"),
        "kill": lazily("benchmarks.serving.campaigns.replicas", "kill"),
        "rolling": lazily("benchmarks.serving.campaigns.replicas", "rolling"),
        "affinity": lazily("benchmarks.serving.campaigns.replicas", "affinity"),
        "swaps": swaps,
        "soak": lazily("benchmarks.serving.campaigns.soak", "soak", minutes),
    }


NAMES = tuple(campaigns(None, 0))


def other_bundle(bench: Bench) -> Path:
    """Return a bundle of the same model with random weights, built on first use.

    Raises:
        UgsepError: the build failed.
    """
    from engines.bundle.manifest import read_manifest

    folder = bench.work / "other"
    if not (folder / "manifest.json").is_file():
        model = read_manifest(bench.bundle).model
        features = Path("build/data/movielens/features.json")
        command = [sys.executable, "-c", "from engines.cli.main import main; main()", "build", model]
        command += ["--out", str(folder), "--init", "random", "--seed", "1", "--backend", "onnxruntime"]
        # Random weights rank at random: int8 changes the order of near ties, which says nothing about a swap.
        command += ["--set", "gates.kendall_tau=0.9", "--set", "gates.fraction_of_limit=0"]
        command += ["--features", str(features)] if features.is_file() else []
        click.echo(f"building {folder}, a bundle with other weights ...")
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            last = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
            raise UgsepError(f"cannot build the other bundle: {last}; give one with --other")
    return folder


def options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that every campaign takes."""
    for option in (
        click.option("--bundle", type=PATH, default=Path("build/zenith"), show_default=True),
        click.option("--work", type=PATH, default=Path("build/serving"), show_default=True, help="Results and logs."),
        click.option("--rivals", type=PATH, default=Path("build/rivals"), show_default=True, help="Other servers."),
        click.option("--short", is_flag=True, help="Seconds instead of minutes, without bounds on times."),
        click.option("--other", type=PATH, help="A bundle of other weights, for 'swaps'.  [default: built]"),
        click.option("--minutes", type=float, default=30.0, show_default=True, help="Length of 'soak'."),
    ):
        command = option(command)
    return command


@click.group(cls=CommandGroup)
def main() -> None:
    """Measure 'ugsep serve' under load; alone on the machine: a core for the server, another for the load."""


@main.command("run", cls=Command)
@click.argument("names", nargs=-1, type=click.Choice(NAMES), required=True)
@options
def run_command(
    names: tuple[str, ...], bundle: Path, work: Path, rivals: Path, short: bool, other: Path | None, minutes: float
) -> None:
    """Run campaigns and save their results; exit with status 1 if a bound is missed."""
    bench = _bench(bundle, work, rivals, short)
    _finish([_run(bench, name, campaigns(other, minutes)[name]) for name in names])


@main.command("all", cls=Command)
@click.option("--force", is_flag=True, help="Also run those that have a result.")
@click.option("--skip", multiple=True, type=click.Choice(NAMES), help="A campaign to leave out; repeatable.")
@options
def all_command(
    force: bool,
    skip: tuple[str, ...],
    bundle: Path,
    work: Path,
    rivals: Path,
    short: bool,
    other: Path | None,
    minutes: float,
) -> None:
    """Run every campaign that has no result yet."""
    bench = _bench(bundle, work, rivals, short)
    known = {} if force else load_results(work)
    found = []
    for name, campaign in campaigns(other, minutes).items():
        if name in skip or (name in known and known[name].short == short):
            continue
        found.append(_run(bench, name, campaign))
    _finish(found)


@main.command("rivals", cls=Command)
@click.option("--folder", type=PATH, default=Path("build/rivals"), show_default=True)
def rivals_command(folder: Path) -> None:
    """Install the other servers, each in an environment of its own (about 1 GB)."""
    from benchmarks.serving.rivals.setup import set_up

    problems = set_up(folder, click.echo)
    if problems:
        raise UgsepError("; ".join(f"{name}: {why}" for name, why in problems.items()))


@main.command("report", cls=Command)
@click.option("--work", type=PATH, default=Path("build/serving"), show_default=True)
@click.option("--out", type=PATH, default=Path("docs/serving-benchmark.md"), show_default=True)
def report_command(work: Path, out: Path) -> None:
    """Write the results into a page with plots."""
    found = load_results(work)
    if not found:
        raise UgsepError(f"{work}: no results; run: python -m benchmarks.serving all")
    write_page(found, out)
    click.echo(f"{out}: {len(found)} campaigns")


def _bench(bundle: Path, work: Path, rivals: Path, short: bool) -> Bench:
    server, generator = two_cores() if not short else (frozenset[int](), frozenset[int]())
    return Bench(bundle, work, short, rivals, 0, server, generator)


def _run(bench: Bench, name: str, campaign: Campaign) -> Result:
    click.echo(f"{name} ...")
    load = os.getloadavg()[0]
    found = campaign(bench)
    found = dataclasses.replace(found, machine={**found.machine, "load": load})  # before, not of the campaign itself
    file = save(bench, found)
    for check in found.checks:
        click.echo(f"  {check}")
    click.echo(f"  {file}")
    return found


def _finish(found: list[Result]) -> None:
    missed = [f"{one.name}: {check}" for one in found for check in one.checks if not check.passed]
    if missed:
        raise GateFailed("; ".join(missed))


if __name__ == "__main__":
    main()
