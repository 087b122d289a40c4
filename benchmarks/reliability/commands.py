"""The commands ``run``, ``coverage`` and ``report``."""

from __future__ import annotations

from pathlib import Path

import click

from benchmarks.reliability.fuzz.guided.command import coverage
from benchmarks.reliability.fuzz.guided.figures import guided_summary
from benchmarks.reliability.journal import Try, journal_path, read_journal
from benchmarks.reliability.page import load_figures, save_figures, write_page
from benchmarks.reliability.registry import CAMPAIGNS, campaign
from benchmarks.reliability.run import Limits, repeat, run
from benchmarks.reliability.summary import Summary, summarize
from engines.cli.group import Command, CommandGroup
from engines.render.json_text import json_text
from graphs.base.errors import GateFailed, UgsepError, printable_line
from graphs.base.progress import show_progress

PATH = click.Path(path_type=Path)
WORK = click.option("--work", type=PATH, default=Path("build/reliability"), show_default=True, help="Journals.")


@click.group(cls=CommandGroup)
def main() -> None:
    """Try to break ugsep, seeded and at length."""


main.add_command(coverage)


@main.command("run", cls=Command)
@click.argument("names", nargs=-1, type=click.Choice(list(CAMPAIGNS)), required=True)
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True), help="Stop each campaign after this long.")
@click.option("--tries", type=click.IntRange(min=1), help="Tries in all, those of the journal included.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--short", is_flag=True, help="As many tries as CI makes.")
@click.option("--fresh", is_flag=True, help="Discard the journal instead of resuming it.")
@click.option("--only", type=click.IntRange(min=0), metavar="INDEX", help="Repeat one try and print how it ended.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
@WORK
def run_command(
    names: tuple[str, ...],
    minutes: float | None,
    tries: int | None,
    seed: int,
    short: bool,
    fresh: bool,
    only: int | None,
    as_json: bool,
    work: Path,
) -> None:
    """Run campaigns; exit with status 1 if a try ended in a defect."""
    if only is not None:
        if len(names) != 1 or tries is not None or minutes is not None or short or fresh:
            raise UgsepError("--only repeats one try of one campaign; it takes --seed and --json")
        one = repeat(campaign(names[0]), work, seed, only)
        click.echo(json_text({"index": one.index, **_shown(one)}) if as_json else _line(one))
        if one.outcome.result == "defect":
            raise GateFailed(f"{names[0]}: try {only} ended in a defect")
        return
    found = []
    for name in names:
        chosen = campaign(name)
        count = tries or (chosen.short_tries if short else chosen.long_tries)
        with show_progress() as progress:
            made = run(chosen, work, seed, Limits(count, minutes), fresh, progress)
        found.append(summarize(chosen, seed, made))
        if not as_json:
            _print(found[-1], made)
    if as_json:
        click.echo(json_text([vars(one) for one in found], indent=1))
    broken = [f"{one.name}: {one.defect_count} of {one.tries} tries" for one in found if one.defect_count]
    if broken:
        raise GateFailed(f"defects: {', '.join(broken)}; repeat a try with --only INDEX --seed {seed}")


@main.command("report", cls=Command)
@WORK
@click.option("--out", type=PATH, default=Path("docs/reliability.md"), show_default=True)
@click.option("--figures", type=PATH, default=Path("docs/reliability"), show_default=True, help="Figures as JSON.")
def report_command(work: Path, out: Path, figures: Path) -> None:
    """Save the figures of the campaigns that have a journal, and write all saved figures into a page."""
    found = []
    for name in CAMPAIGNS:
        seed, tries = read_journal(journal_path(work, name))
        if tries:
            found.append(summarize(campaign(name), seed, [tries[index] for index in sorted(tries)]))
    guided = guided_summary(work)
    save_figures(found if guided is None else [*found, guided], figures)
    saved = load_figures(figures)
    if not saved:
        raise UgsepError(f"{work}: no journals, {figures}: no figures; run: make campaign NAME=kill")
    write_page(saved, out)
    click.echo(f"{out}: {', '.join(one.name for one in saved)}")


def _print(summary: Summary, made: list[Try]) -> None:
    for target, counts in summary.targets.items():
        parts = ", ".join(f"{count} {result}" for result, count in sorted(counts.items(), reverse=True))
        click.echo(f"{summary.name}: {target}: {parts}")
    for one in [one for one in made if one.outcome.result == "defect"][:20]:
        click.echo(f"  {_line(one)}")


def _line(one: Try) -> str:
    o = one.outcome
    measures = " ".join(f"{name}={value:.4g}" for name, value in o.measures.items())
    text = " ".join(part for part in (f"try {one.index}: {o.target}: {o.result}", o.kind, o.detail, measures) if part)
    return printable_line(text)


def _shown(one: Try) -> dict[str, object]:
    return {"seconds": one.seconds, **vars(one.outcome)}
