"""The ``quant`` command: calibrate, quantize weights to int8, and inspect graphs."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import click
from rich.table import Table

from engines.bundle.weight_statuses import engine_statuses
from engines.cli.group import CommandGroup
from engines.cli.quant.scored import search, sensitivity
from engines.cli.quant.sources import calibration_of, graph_pair, onnx_folder, requests_of
from engines.cli.quant.tables import show_rows
from engines.cli.telemetry import disable_telemetry
from engines.render.console import print_table
from graphs.base.errors import UgsepError
from graphs.base.progress import show_progress
from graphs.base.regular_file import is_regular_file
from quant.calibration import calibrate as calibration_run
from quant.calibration.files import load_calibration, save_calibration
from quant.calibration.statistics import Calibration
from quant.calibration.statistics import merge as merge_calibrations
from quant.inspect import inspect_graph
from quant.policy import Policy, read_policy
from quant.schemes.schemes import CONFIGS, scheme_from
from quant.weights import quantize_pair

CHECKPOINT_REQUESTS = 256  # an interrupted calibration loses at most this many


@click.group(cls=CommandGroup)
def main() -> None:
    """Weight-only int8 quantization of exported ranking models, guided by real requests."""
    disable_telemetry()


main.add_command(sensitivity)
main.add_command(search)


@main.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--data", multiple=True, help="Request file, directory of shards, or glob; repeatable.")
@click.option("--synthetic", type=click.IntRange(min=1), help="Use N random requests instead of --data.")
@click.option("--out", type=click.Path(path_type=Path), help="Directory for calibration.json; default: SOURCE.")
@click.option("--limit", type=click.IntRange(min=1), help="Use at most N requests.")
@click.option("--gram", is_flag=True, help="Also collect Gram matrices, which gptq needs.")
@click.option("--restart", is_flag=True, help="Discard an interrupted run instead of resuming it.")
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
    """Collect activation statistics from the FP32 graphs of SOURCE (a bundle or a directory of ONNX files).

    Run the same command again, with the same data and options, to resume an interrupted run.
    """
    user, item = graph_pair(source)
    folder = _output(source, out)
    requests = requests_of(user, item, data, synthetic, limit)
    folder.mkdir(parents=True, exist_ok=True)  # fail before the work if it cannot be written
    interrupted = folder / ".calibrating"
    if restart:
        shutil.rmtree(interrupted, ignore_errors=True)
    resume = _resumable(interrupted)
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


def _resumable(folder: Path) -> Calibration | None:
    """Return what an interrupted run collected; if that run was killed while it wrote or removed it, start anew."""
    try:
        return load_calibration(folder)
    except UgsepError:
        shutil.rmtree(folder, ignore_errors=True)
        return None


@main.command()
@click.argument("parts", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Directory for the merged calibration.")
def merge(parts: tuple[Path, ...], out: Path) -> None:
    """Merge calibrations (PARTS: directories) of the same graphs on different requests, as if run in one go."""
    joined = merge_calibrations(load_calibration(part) for part in parts)
    text, _ = save_calibration(joined, out)
    click.echo(f"{text}: {sum(s.requests for s in joined.samples)} requests, {joined.rows} rows")


@main.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--scheme", default="mse", show_default=True, help=f"One of {', '.join(CONFIGS)}.")
@click.option(
    "--calibration", type=click.Path(path_type=Path), help="Directory of calibration.json; default: SOURCE."
)
@click.option("--policy", type=click.Path(path_type=Path), help="YAML file with the precision per weight.")
@click.option("--block", type=click.IntRange(min=0), help="Rows of K per scale; 0: one scale per channel.")
@click.option("--tables/--no-tables", default=None, help="Also quantize embedding tables, per row.")
@click.option("--out", type=click.Path(path_type=Path), help="Output directory; default: that of the graphs.")
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
    """Quantize the graphs of SOURCE (a bundle or a directory of ONNX files); write FP32 and FP16 views."""
    config = scheme_from(scheme)
    user, item = graph_pair(source)
    folder = _output(source, out, user.parent)
    chosen = read_policy(policy) if policy is not None else Policy()
    if block is not None:
        chosen = replace(chosen, block=block)
    if tables is not None:
        chosen = replace(chosen, tables=tables)
    found = calibration_of(source, calibration, scheme)
    with show_progress() as progress:
        results = quantize_pair(
            user, item, folder, scheme=config, calibration=found, policy=chosen, progress=progress
        )
    if as_json:
        click.echo(json.dumps([r.to_json() for r in results], indent=1))
        return
    show_rows([row for r in results for row in r.rows])
    before, after = sum(r.fp32_bytes for r in results), sum(r.quantized_bytes for r in results)
    click.echo(f"{folder}: weights reduced from {before / 1e6:.2f} MB to {after / 1e6:.2f} MB")


@main.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the rows as JSON.")
def inspect(source: Path, as_json: bool) -> None:
    """List the weights of SOURCE (an ONNX file, a bundle or a directory): shape, precision, bytes, SQNR.

    For a bundle, also show how each engine uses them, read from the graph that its runtime compiled.
    """
    rows = [row for path in _graphs(source) for row in inspect_graph(path)]
    statuses = engine_statuses(source)
    if as_json:
        done: dict[tuple[str, str], dict[str, str]] = {(f.side, f.weight): {} for f in statuses}
        for f in statuses:
            done[f.side, f.weight][f.engine] = f.status
        documents = [{**r.to_json(), "statuses": done.get((r.graph, r.weight), {})} for r in rows]
        click.echo(json.dumps(documents, indent=1))
        return
    show_rows(rows)
    if statuses:
        table = Table("engine", "weight", "requested", "status", "detail")
        for f in statuses:
            table.add_row(f.engine, f.weight, f.precision, f.status, f.detail)
        print_table(table)


def _graphs(source: Path) -> tuple[Path, ...]:
    if not source.is_dir() and is_regular_file(source, "pass an ONNX file or a directory of ONNX files"):
        return (source,)
    folder = onnx_folder(source)
    found = tuple(sorted(folder.glob("*.onnx")))
    if not found:
        raise UgsepError(f"no .onnx files in '{folder}'; pass an ONNX file, a bundle or a directory of ONNX files")
    return found


def _output(source: Path, out: Path | None, default: Path | None = None) -> Path:
    if out is not None:
        return out
    if is_regular_file(source / "manifest.json", "pass another directory with --out"):
        raise UgsepError(f"'{source}' is a finished bundle and must not change; pass another directory with --out")
    return default or source


if __name__ == "__main__":
    main()
