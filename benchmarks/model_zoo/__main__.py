"""``python -m benchmarks.model_zoo``: models of other packages, split, exported, measured, built, and the page."""

from __future__ import annotations

import dataclasses
import logging
import platform
import subprocess
import warnings
from collections.abc import Sequence
from pathlib import Path

import click

from benchmarks.model_zoo.environment import DEFAULT_FOLDER, python_of, set_up
from benchmarks.model_zoo.processes import measured
from benchmarks.model_zoo.results import Result, load, load_all, save, save_all
from engines.bench.machine import this_machine
from engines.cli.group import Command, CommandGroup
from graphs.base.errors import UgsepError, nearest

PATH = click.Path(path_type=Path)
FIGURES, PAGE = Path("docs/model-zoo.json"), Path("docs/third-party-models.md")
_SHOWN = ("torch", "onnxruntime", "deepctr-torch", "torch-rechub", "recbole", "fuxictr", "torchrec", "transformers")

folder_option = click.option(
    "--folder", type=PATH, default=DEFAULT_FOLDER, show_default=True, help="The environment and the results."
)


@click.group(cls=CommandGroup)
def main() -> None:
    """Take ranking models of other packages through the splitter, the exporter, ONNX Runtime and the build."""


@main.command("setup", cls=Command)
@folder_option
def setup_command(folder: Path) -> None:
    """Install the packages into an environment of their own (about 600 MB)."""
    set_up(folder, click.echo)


@main.command("list", cls=Command)
def list_command() -> None:
    """Show the names of all models."""
    from benchmarks.model_zoo.packages.table import names

    for name, (package, model) in names().items():
        click.echo(f"{name}: {model} ({package})")


@main.command("run", cls=Command)
@click.argument("chosen", metavar="[NAME]...", nargs=-1)
@folder_option
@click.option("--rounds", default=30, show_default=True, help="Interleaved rounds to take the medians of.")
@click.option("--seconds", default=600, show_default=True, help="Give up on a model after this time.")
@click.option("--fresh", is_flag=True, help="Also measure models that have a result.")
def run_command(chosen: Sequence[str], folder: Path, rounds: int, seconds: int, fresh: bool) -> None:
    """Measure models, each in a process of its own; without names all that have no result. Alone on the machine."""
    python = python_of(folder)
    for name in _known(chosen):
        before = load(folder / "results", name)
        if before is not None and not fresh and not chosen:
            continue
        found = measured(python, name, folder / "running", rounds, seconds)
        found = dataclasses.replace(found, build=before.build if before else None)
        save(folder / "results", name, found)
        click.echo(_told(name, found))


@main.command("one", cls=Command, hidden=True)
@click.argument("name")
@click.argument("out", type=PATH)
@click.option("--rounds", default=30)
def one_command(name: str, out: Path, rounds: int) -> None:
    """Measure one model in this process and save its result in a folder."""
    from benchmarks.model_zoo.measure import measure
    from benchmarks.model_zoo.packages import table

    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)  # the packages' own
    package, label = table.names()[name]
    try:
        model = table.make(name)
    except Exception as error:  # another package's code may raise anything
        said = " ".join(str(error).split())
        save(out, name, Result(package, label, "failed", f"{type(error).__name__}: {said}"))
        return
    save(out, name, measure(package, label, model, rounds))


@main.command("build", cls=Command)
@click.argument("chosen", metavar="[NAME]...", nargs=-1)
@folder_option
@click.option("--fresh", is_flag=True, help="Also build models that have been built.")
def build_command(chosen: Sequence[str], folder: Path, fresh: bool) -> None:
    """Take models through 'ugsep build'; without names those of ``builds.BUILT`` that were not built yet."""
    from benchmarks.model_zoo.builds import BUILT, build

    python = python_of(folder)
    for name in _known(chosen) if chosen else BUILT:
        before = load(folder / "results", name)
        if before is None or not before.user:
            raise UgsepError(f"{name}: not measured; run: python -m benchmarks.model_zoo run {name}")
        if before.build is not None and not fresh and not chosen:
            continue
        found = build(python, name, before, folder)
        save(folder / "results", name, dataclasses.replace(before, build=found))
        failed = ", ".join(g.name for g in found.gates if not g.passed)
        click.echo(f"{name}: status {found.status} {found.reason or failed} {found.seconds:.0f} s")


@main.command("report", cls=Command)
@folder_option
@click.option("--figures", type=PATH, default=FIGURES, show_default=True)
@click.option("--page", type=PATH, default=PAGE, show_default=True)
@click.option("--collect/--no-collect", default=True, show_default=True, help="Read the results in the folder first.")
def report_command(folder: Path, figures: Path, page: Path, collect: bool) -> None:
    """Collect the results into one file and write the tables of the page from it."""
    from benchmarks.model_zoo.page import write_tables

    if collect:
        found = [r for name in _known(()) if (r := load(folder / "results", name)) is not None]
        save_all(figures, _machine(python_of(folder)), found)
    machine, results = load_all(figures)
    write_tables(page, machine, results)
    click.echo(f"{page}: {len(results)} models")


def _known(chosen: Sequence[str]) -> list[str]:
    from benchmarks.model_zoo.packages.table import names

    known = names()
    for name in chosen:
        if name not in known:
            raise UgsepError(
                f"no model '{name}'{nearest(name, known)}; python -m benchmarks.model_zoo list shows all"
            )
    return list(chosen or known)


def _told(name: str, found: Result) -> str:
    if found.outcome != "split":
        return f"{name}: {found.outcome}: {found.reason}"
    return (
        f"{name}: share {found.share:.0%}, limit {found.limit:.2f}x, measured {found.speedup:.2f}x, {found.seconds} s"
    )


def _machine(python: Path) -> dict[str, str]:
    """Return the versions of what was measured, and the processor."""
    code = "import importlib.metadata as m, sys\nfor n in sys.argv[1:]: print(n, m.version(n))"
    said = subprocess.run([str(python), "-c", code, *_SHOWN], capture_output=True, text=True, check=True).stdout
    versions = dict(line.split() for line in said.splitlines())
    machine = this_machine()
    return {**versions, "Python": platform.python_version(), "on": f"{machine.processor}, {machine.isa}"}


if __name__ == "__main__":
    main()
