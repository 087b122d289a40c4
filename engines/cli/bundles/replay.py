"""``ugsep replay``: score recorded requests again and compare."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from engines.cli.group import echo_text
from engines.render.json_text import json_text
from graphs.base.errors import GateFailed, UgsepError
from graphs.base.progress import show_progress

if TYPE_CHECKING:
    from engines.verify.replay.replay import Replay

_SHARE = click.FloatRange(0, 1)
_RATIO = click.FloatRange(0, min_open=True)


@click.command("replay")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("other", type=click.Path(path_type=Path), required=False)
@click.option("--requests", type=click.Path(path_type=Path), multiple=True, required=True,
              help="Recorded requests: a folder of 'ugsep serve --record' or any request file.")  # fmt: skip
@click.option("--limit", type=click.IntRange(1), help="Score at most this many requests.")
@click.option("--min-tau", type=click.FloatRange(-1, 1), default=0.99, show_default=True,
              help="Lowest mean Kendall tau within requests.")  # fmt: skip
@click.option("--min-overlap", type=_SHARE, default=0.95, show_default=True, help="Lowest mean top-k overlap.")
@click.option("--top-k", type=click.IntRange(1), default=10, show_default=True, help="k of the overlap.")
@click.option("--max-drift", type=click.FloatRange(0), help="Largest absolute difference of a logit.")
@click.option("--max-slowdown", type=_RATIO, help="Largest p50 of OTHER over that of BUNDLE.")
@click.option("--html", type=click.Path(path_type=Path, dir_okay=False), help="Also write a page with plots.")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def replay_command(
    bundle: Path,
    other: Path | None,
    requests: tuple[Path, ...],
    limit: int | None,
    min_tau: float,
    min_overlap: float,
    top_k: int,
    max_drift: float | None,
    max_slowdown: float | None,
    html: Path | None,
    as_json: bool,
) -> None:
    """Score requests with BUNDLE and compare OTHER with it: ranks, top-k, score drift, latency.

    Without OTHER, compare BUNDLE with the scores that were served when the requests were recorded, or with its FP32
    graph if the files hold none.
    """
    from engines.verify.replay.page import replay_page
    from engines.verify.replay.replay import Bounds, replay

    if html is not None and not html.absolute().parent.is_dir():
        raise UgsepError(f"--html '{html}': its folder does not exist; create it")
    bounds = Bounds(min_tau, min_overlap, top_k, max_drift, max_slowdown)
    with show_progress() as progress:
        found = replay(bundle, other, requests, bounds, limit, progress)
    if html is not None:
        html.write_text(replay_page(found), encoding="utf-8")
    if as_json:
        click.echo(json_text(found.as_dict()))
    else:
        _show(found)
    broken = [str(check) for check in found.checks if not check.passed]
    if broken:
        raise GateFailed(f"{found.actual} against {found.reference}: {'; '.join(broken)}")


def _show(found: Replay) -> None:
    from rich.table import Table

    from engines.render.console import print_table

    echo_text(f"{found.actual} against {found.reference}: {found.requests:,} requests, {found.rows:,} candidates")
    if found.only_in_one:
        echo_text(f"not compared, because only one has it: {', '.join(found.only_in_one)}")
    scores = Table("task", "mean |d|", "p99 |d|", "max |d|", "SQNR dB", "Kendall tau", "lowest", "top-k overlap")
    for task, drift in found.tasks.items():
        agreed = drift.agreement
        errors = [f"{value:.3g}" for value in (drift.mean_abs, drift.p99_abs, agreed.max_abs)]
        ranks = [f"{value:.5f}" for value in (agreed.kendall_tau, drift.lowest_tau, agreed.top_k_overlap)]
        scores.add_row(task, *errors, f"{agreed.sqnr_db:.1f}", *ranks)
    print_table(scores)
    times = Table("latency, ms", "user", "p50", "p90", "p99")
    for name, latency in found.latency.items():
        for kind, ms in (("computed", latency.computed), ("cached", latency.cached)):
            times.add_row(name, kind, f"{ms.p50:.3f}", f"{ms.p90:.3f}", f"{ms.p99:.3f}")
    print_table(times)
    for check in found.checks:
        echo_text(f"  {check}")
