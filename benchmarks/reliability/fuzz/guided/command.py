"""``python -m benchmarks.reliability coverage``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from benchmarks.reliability.fuzz.guided.cover import Bounds, check_installed, cover, replay
from benchmarks.reliability.fuzz.guided.figures import NAME, Figures, kept_defects
from benchmarks.reliability.fuzz.guided.table import TARGETS, target_of
from benchmarks.reliability.run import locked
from engines.cli.group import Command
from engines.render.json_text import json_text
from graphs.base.errors import GateFailed, UgsepError, printable_line

__all__ = ["coverage"]

_PATH = click.Path(path_type=Path)
_MINUTES = 10.0


@click.command(NAME, cls=Command)
@click.option(
    "--minutes", type=click.FloatRange(min=0, min_open=True), help=f"Of all targets together  [default: {_MINUTES:g}]"
)
@click.option("--inputs", type=click.IntRange(min=1), help="Of each target, instead of a time.")
@click.option("--target", "names", multiple=True, metavar="NAME", help="Fuzz this one only; may be given again.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--fresh", is_flag=True, help="Discard corpus and figures instead of going on from them.")
@click.option("--replay", "file", type=_PATH, help="Give one input to the parser of --target and print how it ends.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
@click.option("--work", type=_PATH, default=Path("build/reliability"), show_default=True, help="Corpora, figures.")
def coverage(
    minutes: float | None,
    inputs: int | None,
    names: tuple[str, ...],
    seed: int,
    fresh: bool,
    file: Path | None,
    as_json: bool,
    work: Path,
) -> None:
    """Fuzz the parsers guided by coverage; exit with status 1 if an input is neither accepted nor refused."""
    targets = [target_of(name) for name in dict.fromkeys(names)] or list(TARGETS)
    if file is not None:
        if len(names) != 1 or minutes is not None or inputs is not None or fresh:
            raise UgsepError("--replay gives one input to one parser; it takes --target and --json")
        _replayed(names[0], file, as_json)
        return
    check_installed()
    if minutes is not None and inputs is not None:
        raise UgsepError("--minutes and --inputs exclude each other; give one of them")
    seconds = None if inputs is not None else 60 * (_MINUTES if minutes is None else minutes) / len(targets)
    found: dict[str, Figures] = {}
    with locked(NAME, work):
        for target in targets:
            found[target.name] = cover(target, work / NAME / target.name, seed, Bounds(seconds, inputs), fresh)
            if not as_json:
                click.echo(f"{target.name}: {_line(found[target.name])}")
                for path, kind, detail in kept_defects(work / NAME / target.name):
                    click.echo(printable_line(f"  {kind}: {detail}; --target {target.name} --replay {path}"))
    if as_json:
        click.echo(json_text({name: asdict(one) for name, one in found.items()}, indent=1))
    broken = [f"{name}: {one.defects}" for name, one in found.items() if one.defects]
    if broken:
        raise GateFailed(f"defects: {', '.join(broken)}; see one with: {NAME} --target NAME --replay INPUT")


def _replayed(name: str, file: Path, as_json: bool) -> None:
    if not file.is_file():
        raise UgsepError(f"{file}: no such file; give an input that a run has kept")
    verdict = replay(target_of(name), file)
    click.echo(
        json_text(asdict(verdict))
        if as_json
        else printable_line(
            f"{name}: {' '.join(part for part in (verdict.result, verdict.kind, verdict.detail) if part)}"
        )
    )
    if verdict.result == "defect":
        raise GateFailed(f"{name}: the input is a defect")


def _line(one: Figures) -> str:
    return (
        f"{one.inputs} inputs, {one.ok} ok, {one.refused} refused, {one.defects} defects; "
        f"{one.edges} edges, {one.features} features, corpus of {one.corpus}"
    )
