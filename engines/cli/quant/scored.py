"""The commands that score held-out requests, ``quant sensitivity`` and ``quant search``."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from functools import wraps
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from engines.bench.gemm_latency import gemm_timer
from engines.cli.quant.sources import calibration_of, graph_pair, requests_of
from engines.render.console import print_table
from graphs.base.errors import UgsepError
from graphs.base.progress import show_progress
from quant.graph.files import write_whole
from quant.policy import Policy
from quant.schemes.schemes import CONFIGS, scheme_from
from quant.search.search import Goal, policy_yaml
from quant.search.search import search as run_search
from quant.search.sensitivity import check_plot, plot_sensitivity
from quant.search.sensitivity import sensitivity as run_sensitivity

_OPTIONS = (
    click.option("--json", "as_json", is_flag=True, help="Print the results as JSON."),
    click.option("--cache", type=click.Path(path_type=Path), help="Cache file for measured effects."),
    click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True),
    click.option(
        "--limit", type=click.IntRange(min=1), default=200, show_default=True, help="Score at most N requests."
    ),
    click.option("--block", type=click.IntRange(min=0), default=0, help="Rows of K per scale; 0: per channel."),
    click.option("--calibration", type=click.Path(path_type=Path), help="Directory of calibration.json."),
    click.option("--scheme", default="mse", show_default=True, help=f"One of {', '.join(CONFIGS)}."),
    click.option("--data", multiple=True, required=True, help="Held-out requests: file, directory or glob."),
    click.argument("source", type=click.Path(path_type=Path)),
)


def _scored(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options shared by both commands, and pass their values as arguments of the functions they call."""

    @wraps(command)
    def prepared(
        source: Path,
        data: tuple[str, ...],
        scheme: str,
        calibration: Path | None,
        block: int,
        limit: int,
        threads: int,
        cache: Path | None,
        **own: Any,
    ) -> None:
        config, (user, item) = scheme_from(scheme), graph_pair(source)
        shared = {
            "user_onnx": user,
            "item_onnx": item,
            "requests": tuple(requests_of(user, item, data, limit=limit)),
            "scheme": config,
            "calibration": calibration_of(source, calibration, scheme),
            "threads": threads,
            "cache": cache,
        }
        command(shared, block, **own)

    for option in _OPTIONS:
        prepared = option(prepared)
    return prepared


@click.command()
@_scored
@click.option(
    "--plot", type=click.Path(path_type=Path, dir_okay=False), help="Also plot the ranking (png, svg, pdf)."
)
def sensitivity(shared: dict[str, Any], block: int, plot: Path | None, as_json: bool) -> None:
    """Quantize each weight of SOURCE alone and rank the weights by the effect on the scores."""
    if plot is not None:
        check_plot(plot)
    with show_progress() as progress:
        rows = run_sensitivity(**shared, block=block, progress=progress)
    if plot is not None:
        plot_sensitivity(rows, plot)
    if as_json:
        click.echo(json.dumps([r.to_json() for r in rows], indent=1))
        return
    table = Table("graph", "weight", "shape", "SQNR dB", "Kendall tau", "AUC change")
    for r in rows:
        auc = "" if r.auc_change is None else f"{r.auc_change:+.1e}"
        shape = "x".join(map(str, r.shape))
        table.add_row(r.side, r.weight, shape, f"{r.sqnr_db:.1f}", f"{r.kendall_tau:.5f}", auc)
    print_table(table)


@click.command()
@_scored
@click.option("--max-drop", type=click.FloatRange(min=0), default=5e-5, show_default=True, help="Maximum AUC change.")
@click.option("--min-sqnr", type=float, default=35.0, show_default=True, help="Minimum SQNR of the scores, dB.")
@click.option("--max-bytes", type=click.IntRange(min=1), help="Maximum bytes of the quantizable weights.")
@click.option(
    "--backend", default="onnxruntime", show_default=True, help="Backend to time; it must run on this machine."
)
@click.option("--candidates", type=click.IntRange(min=1), default=256, show_default=True, help="Items per request.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Policy file to write; default: stdout.")
def search(
    shared: dict[str, Any],
    block: int,
    max_drop: float,
    min_sqnr: float,
    max_bytes: int | None,
    backend: str,
    candidates: int,
    out: Path | None,
    as_json: bool,
) -> None:
    """Find the fastest precision for each weight of SOURCE that stays within the bounds; write a policy."""
    measure = gemm_timer(backend, shared["threads"])
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
    with show_progress() as progress:
        result = run_search(
            **shared,
            goal=Goal(max_drop, min_sqnr, max_bytes),
            measure=measure,
            candidates=candidates,
            base=Policy(block=block),
            progress=progress,
        )
    text = policy_yaml(result)
    if out is not None:
        try:
            write_whole(out, text)
        except UgsepError:
            click.echo(text)  # do not lose an hour of measurements
            raise
    if as_json:
        choices = [c.to_json() for c in result.choices]
        click.echo(json.dumps({"backend": backend, "effect": asdict(result.effect), "choices": choices}, indent=1))
    else:
        click.echo(text if out is None else f"{out}: {len(result.choices)} rules")
