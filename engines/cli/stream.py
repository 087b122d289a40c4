"""``ugsep stream``: export and quantize a model that does not fit in memory."""

from __future__ import annotations

import json
import math
from pathlib import Path

import click

from engines.recipes.recipe import load_recipe
from graphs.base.progress import show_progress


@click.command("stream")
@click.argument("model")
@click.option(
    "--checkpoint", required=True, type=click.Path(path_type=Path), help="Directory with config.json and the shards."
)
@click.option("--out", type=click.Path(path_type=Path), help="Directory for the graphs  [default: build/MODEL/onnx]")
@click.option(
    "--scheme", default="absmax", show_default=True, help="Quantization scheme; absmax needs no calibration."
)
@click.option("--threads", type=click.IntRange(min=1), default=2, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print sizes and peak memory as JSON.")
def stream_command(model: str, checkpoint: Path, out: Path | None, scheme: str, threads: int, as_json: bool) -> None:
    """Export and quantize MODEL (a recipe) weight by weight, from a checkpoint that does not fit in memory.

    Run the same command again to resume an interrupted run.
    """
    from engines.build.streaming import stream
    from engines.measure.process_memory import peak_bytes
    from quant.schemes.schemes import scheme_from

    recipe, name = load_recipe(model), Path(model).stem
    folder = out or Path("build") / name / "onnx"
    with show_progress() as progress:
        found = stream(
            name, recipe, checkpoint, folder, scheme=scheme_from(scheme), threads=threads, progress=progress
        )
    tables = found.tables.values()
    before, after = sum(t.fp32_bytes for t in tables), sum(t.quantized_bytes for t in tables)
    if as_json:
        int8 = sum(math.prod(r.shape) for t in tables for r in t.rows if r.bits == 8)
        facts: dict[str, str | int | None] = {
            "out": str(folder),
            "fp32_bytes": before,
            "quantized_bytes": after,
            "resumed": found.resumed,
        }
        facts |= {"output_bytes": found.output_bytes, "unchanged": found.unchanged, "int8_bytes": int8}
        facts["peak_bytes"] = peak_bytes()
        click.echo(json.dumps(facts))
        return
    if found.unchanged:
        click.echo(f"{folder}: up to date, nothing changed")
    elif found.resumed:
        click.echo(f"{folder}: resumed an interrupted run after {found.resumed} weights")
    click.echo(f"{folder}: weights reduced from {before / 1e6:.1f} MB to {after / 1e6:.1f} MB")
