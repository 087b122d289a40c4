"""``ugsep bench``: compare a bundle with other ways to serve its model."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from pathlib import Path

import click

from engines.cli.group import SEED, Command, echo_text
from graphs.base.errors import UgsepError
from graphs.base.progress import show_progress


@click.command("bench", cls=Command, renamed={"--peers": "--baselines"})
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--baselines", default="all", show_default=True, help="all, none, or comma-separated names.")
@click.option("--candidates", default="1,16,64,256,1024", show_default=True, help="Candidates per request.")
@click.option("--threads", default="1,2", show_default=True, help="Thread counts, one run each.")
@click.option("--rounds", default=20, show_default=True, help="Timed calls per baseline and size.")
@click.option(
    "--budget",
    default=60.0,
    show_default=True,
    help="Skip a baseline at a request size if it takes longer than this, in seconds.",
)
@click.option(
    "--checkpoint", type=click.Path(path_type=Path), help="Checkpoint of the bundle, for the PyTorch baselines."
)
@click.option(
    "--random",
    "random_weights",
    is_flag=True,
    help="Use random PyTorch weights, for a bundle built with --init random.",
)
@click.option("--seed", type=SEED, default=0, show_default=True, help="Seed of the random bundle.")
@click.option("--features", type=click.Path(path_type=Path), help="features.json of the random bundle.")
@click.option("--ratios", is_flag=True, help="Also time small models at several user:item token ratios.")
@click.option(
    "--memory/--no-memory",
    default=True,
    show_default=True,
    help="Measure the memory of the bundle and each baseline, each in its own process.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), help="Directory for bench.json and bench.html  [default: BUNDLE.bench]"
)
@click.option("--title", default="", help="Title of the results  [default: the model's name]")
@click.option("--markdown", type=click.Path(path_type=Path), help="Also write the results into this Markdown file.")
@click.option("--json", "as_json", is_flag=True, help="Print bench.json to stdout.")
def bench_command(
    bundle: Path,
    baselines: str,
    candidates: str,
    threads: str,
    rounds: int,
    budget: float,
    checkpoint: Path | None,
    random_weights: bool,
    seed: int,
    features: Path | None,
    ratios: bool,
    memory: bool,
    out: Path | None,
    title: str,
    markdown: Path | None,
    as_json: bool,
) -> None:
    """Benchmark BUNDLE against other ways to serve its model, in one interleaved run."""
    from engines.bench.baselines import choose_baselines
    from engines.bench.baselines.contract import ModelWeights
    from engines.bench.page import HTML, write_markdown, write_result
    from engines.bench.result import document, run_bench
    from engines.bench.run import Settings
    from engines.render.json_text import json_text

    if checkpoint is not None and random_weights:
        raise UgsepError("--random and --checkpoint are mutually exclusive; pass one of them")
    model = ModelWeights(checkpoint, features, seed) if checkpoint or random_weights else None
    settings = Settings(_counts("--candidates", candidates), _counts("--threads", threads), rounds, memory, budget)
    chosen = choose_baselines(baselines)
    folder = out or bundle.with_name(f"{bundle.name}.bench")
    command = shlex.join(["ugsep", *sys.argv[1:]])
    with show_progress() as progress:
        result = run_bench(bundle, chosen, settings, model, ratios=ratios, command=command, progress=progress)
    result = dataclasses.replace(result, model=title or result.model)
    write_result(folder, result)
    if markdown is not None:
        write_markdown(markdown, result)
    if as_json:
        click.echo(json_text(document(result)))
        return
    for sentence in result.sentences:
        echo_text(sentence)
    for name, reason in result.measured.left_out.items():
        echo_text(f"left out: {name}: {reason}")
    echo_text(f"see {folder / HTML}")


def _counts(option: str, text: str) -> tuple[int, ...]:
    try:
        found = sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise UgsepError(f"{option} is '{text}'; pass comma-separated integers, e.g. 1,16,256") from None
    if found[0] < 1:
        raise UgsepError(f"{option} contains {found[0]}; every value must be an integer >= 1")
    return tuple(found)
