"""Command line ``quant``: calibrate, choose and write int8 weights, and look at what is in a graph."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from graphs.command import CommandGroup
from graphs.errors import UgsepError
from graphs.progress import show_progress
from quant import calibrate as calibration_run
from quant.inspect import engine_fates, inspect_graph
from quant.policy import Policy, read_policy
from quant.requests import Request, read_requests, request_spec, synthetic_requests, table_rows
from quant.schemes import CONFIGS, scheme_from
from quant.search import Goal, policy_yaml
from quant.search import search as run_search
from quant.sensitivity import plot_sensitivity
from quant.sensitivity import sensitivity as run_sensitivity
from quant.statistics import Calibration, load_calibration, save_calibration
from quant.statistics import merge as merge_calibrations
from quant.weights import QuantRow, quantize_side

CHECKPOINT_REQUESTS = 256  # what an interrupted calibration loses at most


@click.group(cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Weight-only int8 for exported ranking models, chosen on real requests."""


@main.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--data", multiple=True, help="Requests: a file, a folder of shards, or a glob; repeatable.")
@click.option("--synthetic", type=click.IntRange(min=1), help="Use this many random requests instead of data.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for calibration.json; default: SOURCE.")
@click.option("--limit", type=click.IntRange(min=1), help="Stop after this many requests.")
@click.option("--gram", is_flag=True, help="Collect Gram matrices too; gptq needs them.")
@click.option("--restart", is_flag=True, help="Forget an interrupted run instead of going on with it.")
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def calibrate(
    source: Path,
    data: tuple[str, ...],
    synthetic: int | None,
    out: Path | None,
    limit: int | None,
    gram: bool,
    restart: bool,
    threads: int,
    as_json: bool,
) -> None:
    """Run the FP32 graphs of SOURCE (a bundle or a folder of ONNX files) over requests; keep the statistics.

    An interrupted run goes on where it was when it is started again with the same data and options.
    """
    user, item = graph_pair(source)
    folder = _output(source, out)
    requests = _requests(user, item, data, synthetic, limit)
    interrupted = folder / ".calibrating"
    if restart:
        shutil.rmtree(interrupted, ignore_errors=True)
    resume = load_calibration(interrupted) if (interrupted / "calibration.json").is_file() else None
    with show_progress() as progress:
        found = calibration_run.calibrate(
            user,
            item,
            requests,
            threads=threads,
            progress=progress,
            gram=gram,
            synthetic=synthetic is not None,
            every=CHECKPOINT_REQUESTS,
            checkpoint=lambda partial: save_calibration(partial, interrupted),
            resume=resume,
        )
    text, tensors = save_calibration(found, folder)
    shutil.rmtree(interrupted, ignore_errors=True)
    summary = {
        "files": [str(text), str(tensors)],
        "requests": sum(s.requests for s in found.samples),
        "rows": found.rows,
        "samples_sha256": found.samples_sha256,
        "synthetic": found.synthetic,
        "weights": {"user": len(found.user.feeds), "item": len(found.item.feeds)},
    }
    if as_json:
        click.echo(json.dumps(summary, indent=1))
    else:
        kind = "random" if found.synthetic else "real"
        click.echo(f"{text}: {summary['requests']} {kind} requests, {found.rows} rows")


@main.command()
@click.argument("parts", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for the joined calibration.")
def merge(parts: tuple[Path, ...], out: Path) -> None:
    """Join calibrations (PARTS: folders) of the same graphs over different requests, as if they were run in one."""
    joined = merge_calibrations(load_calibration(part) for part in parts)
    text, _ = save_calibration(joined, out)
    click.echo(f"{text}: {sum(s.requests for s in joined.samples)} requests, {joined.rows} rows")


@main.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--scheme", default="mse", show_default=True, help=f"One of {', '.join(CONFIGS)}.")
@click.option("--calibration", type=click.Path(path_type=Path), help="Folder of calibration.json; default: SOURCE.")
@click.option("--policy", type=click.Path(path_type=Path), help="YAML file: precision per weight.")
@click.option("--block", type=click.IntRange(min=0), help="Rows of K per scale; 0: one scale per channel.")
@click.option("--tables/--no-tables", default=None, help="Quantize embedding tables too, per row.")
@click.option("--out", type=click.Path(path_type=Path), help="Output folder; default: the folder of the graphs.")
@click.option("--json", "as_json", is_flag=True, help="Print the tables as JSON.")
def weights(
    source: Path,
    scheme: str,
    calibration: Path | None,
    policy: Path | None,
    block: int | None,
    tables: bool | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Write the int8 graphs of SOURCE (a bundle or a folder of ONNX files), in both typed views."""
    config = scheme_from(scheme)
    user, item = graph_pair(source)
    folder = _output(source, out, user.parent)
    chosen = read_policy(policy) if policy is not None else Policy()
    if block is not None:
        chosen = replace(chosen, block=block)
    if tables is not None:
        chosen = replace(chosen, tables=tables)
    found = _calibration(source, calibration, scheme)
    with show_progress() as progress:
        results = [
            quantize_side(p, folder, scheme=config, calibration=found, policy=chosen, progress=progress)
            for p in (user, item)
        ]
    if as_json:
        click.echo(json.dumps([r.to_json() for r in results], indent=1))
        return
    show_rows([row for r in results for row in r.rows])
    before, after = sum(r.fp32_bytes for r in results), sum(r.quantized_bytes for r in results)
    click.echo(f"{folder}: {before / 1e6:.2f} MB of weights are now {after / 1e6:.2f} MB")


@main.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the rows as JSON.")
def inspect(source: Path, as_json: bool) -> None:
    """List the weights of SOURCE (an ONNX file, a bundle or a folder): shape, precision, bytes, SQNR.

    For a bundle also what each engine really does with them, read from the graph its runtime optimised.
    """
    rows = [row for path in _graphs(source) for row in inspect_graph(path)]
    fates = engine_fates(source)
    if as_json:
        done: dict[tuple[str, str], dict[str, str]] = {(f.side, f.weight): {} for f in fates}
        for f in fates:
            done[f.side, f.weight][f.engine] = f.fate
        documents = [{**r.to_json(), "fates": done.get((r.graph, r.weight), {})} for r in rows]
        click.echo(json.dumps(documents, indent=1))
        return
    show_rows(rows)
    if fates:
        table = Table("engine", "weight", "asked for", "what it does", "by")
        for f in fates:
            table.add_row(f.engine, f.weight, f.precision, f.fate, f.detail)
        _print(table)


def _scored(command: Any) -> Any:
    """Add the arguments that sensitivity and search share."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print the result as JSON."),
        click.option("--cache", type=click.Path(path_type=Path), help="File that keeps the effects found so far."),
        click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True),
        click.option(
            "--limit", type=click.IntRange(min=1), default=200, show_default=True, help="Requests to score."
        ),
        click.option("--block", type=click.IntRange(min=0), default=0, help="Rows of K per scale; 0: per channel."),
        click.option("--calibration", type=click.Path(path_type=Path), help="Folder of calibration.json."),
        click.option("--scheme", default="mse", show_default=True, help=f"One of {', '.join(CONFIGS)}."),
        click.option("--data", multiple=True, required=True, help="Held-out requests: file, folder or glob."),
        click.argument("source", type=click.Path(path_type=Path)),
    ):
        command = option(command)
    return command


@main.command()
@_scored
@click.option(
    "--plot", type=click.Path(path_type=Path, dir_okay=False), help="Also draw the ranking (png, svg, pdf)."
)
def sensitivity(
    source: Path,
    data: tuple[str, ...],
    scheme: str,
    calibration: Path | None,
    block: int,
    limit: int,
    threads: int,
    cache: Path | None,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Quantize every weight of SOURCE alone and rank the weights by what that does to the scores."""
    config, (user, item) = scheme_from(scheme), graph_pair(source)
    with show_progress() as progress:
        rows = run_sensitivity(
            user,
            item,
            _requests(user, item, data, None, limit),
            scheme=config,
            calibration=_calibration(source, calibration, scheme),
            block=block,
            threads=threads,
            cache=cache,
            progress=progress,
        )
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
    _print(table)


@main.command()
@_scored
@click.option("--max-drop", type=click.FloatRange(min=0), default=5e-5, show_default=True, help="Largest AUC change.")
@click.option("--min-sqnr", type=float, default=35.0, show_default=True, help="Least SQNR of the scores, dB.")
@click.option("--max-bytes", type=click.IntRange(min=1), help="Bytes that the quantizable weights may take.")
@click.option("--backend", default="onnxruntime", show_default=True, help="Whose latencies count.")
@click.option("--candidates", type=click.IntRange(min=1), default=256, show_default=True, help="Items per request.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Policy file to write; default: stdout.")
def search(
    source: Path,
    data: tuple[str, ...],
    scheme: str,
    calibration: Path | None,
    block: int,
    limit: int,
    threads: int,
    cache: Path | None,
    max_drop: float,
    min_sqnr: float,
    max_bytes: int | None,
    backend: str,
    candidates: int,
    out: Path | None,
    as_json: bool,
) -> None:
    """Find the fastest precision of each weight of SOURCE that keeps the scores, and write it as a policy."""
    config, (user, item) = scheme_from(scheme), graph_pair(source)
    with show_progress() as progress:
        result = run_search(
            user,
            item,
            _requests(user, item, data, None, limit),
            scheme=config,
            calibration=_calibration(source, calibration, scheme),
            goal=Goal(max_drop, min_sqnr, max_bytes),
            candidates=candidates,
            backend=backend,
            base=Policy(block=block),
            threads=threads,
            cache=cache,
            progress=progress,
        )
    text = policy_yaml(result)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = out.with_name(f"{out.name}.partial")
        partial.write_text(text)
        os.replace(partial, out)
    if as_json:
        rows = [asdict(c) for c in result.choices]
        click.echo(json.dumps({"effect": asdict(result.effect), "choices": rows}, indent=1))
    else:
        click.echo(text if out is None else f"{out}: {len(result.choices)} rules")


def _calibration(source: Path, folder: Path | None, scheme: str) -> Calibration | None:
    return load_calibration(folder or source) if scheme != "absmax" or folder is not None else None


def _print(table: Table) -> None:
    Console(file=sys.stdout, width=None if sys.stdout.isatty() else 200).print(table)


def show_rows(rows: Iterable[QuantRow]) -> None:
    """Print rows as a table on stdout."""
    table = Table("graph", "weight", "shape", "precision", "scheme", "bytes", "SQNR dB", "why not int8")
    for row in rows:
        sqnr = "" if row.sqnr_db == float("inf") else f"{row.sqnr_db:.1f}"
        shape = "x".join(map(str, row.shape))
        scheme = f"{row.scheme}/{row.block}" if row.block else row.scheme
        cells = (row.precision, scheme, f"{row.quantized_bytes:,}", sqnr, row.reason_if_skipped)
        table.add_row(row.graph, row.weight, shape, *cells)
    _print(table)


def graph_pair(source: Path) -> tuple[Path, Path]:
    """Return user.onnx and item.onnx of a bundle (its ``onnx`` folder) or of a folder of ONNX files.

    Raises:
        UgsepError: they are not there.
    """
    folder = source / "onnx" if (source / "onnx").is_dir() else source
    pair = (folder / "user.onnx", folder / "item.onnx")
    for path in pair:
        if not path.is_file():
            raise UgsepError(f"'{path}' does not exist; give a bundle or a folder with user.onnx and item.onnx")
    return pair


def _graphs(source: Path) -> tuple[Path, ...]:
    if source.is_file():
        return (source,)
    folder = source / "onnx" if (source / "onnx").is_dir() else source
    found = tuple(sorted(folder.glob("*.onnx")))
    if not found:
        raise UgsepError(f"no .onnx file in '{folder}'; give an ONNX file, a bundle or a folder of them")
    return found


def _output(source: Path, out: Path | None, default: Path | None = None) -> Path:
    if out is not None:
        return out
    if (source / "manifest.json").is_file():
        raise UgsepError(f"'{source}' is a finished bundle, sealed by its manifest; give --out")
    return default or source


def _requests(
    user: Path, item: Path, data: tuple[str, ...], synthetic: int | None, limit: int | None
) -> Iterable[Request]:
    spec = request_spec(user, item)
    if data and synthetic is not None:
        raise UgsepError("--data and --synthetic exclude each other; give one")
    if synthetic is not None:
        requests = synthetic_requests(spec, synthetic, 64, table_rows(user, item), seed=0)
    elif data:
        requests = read_requests(data, spec)
    else:
        raise UgsepError("no data to calibrate on; give --data PATH, or --synthetic N for a trial")
    return requests if limit is None else _first(requests, limit)


def _first(requests: Iterable[Any], limit: int) -> Iterable[Any]:
    for number, request in enumerate(requests):
        if number == limit:
            return
        yield request
