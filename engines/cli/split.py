"""``ugsep split``: split a third-party model, verify the split and explain it."""

from __future__ import annotations

import dataclasses
import json
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from engines.cli.group import SHARE, echo_text
from engines.cli.jagged import declared_features, jagged_options
from engines.render.console import stdout_console
from graphs.base.errors import UgsepError

if TYPE_CHECKING:
    from graphs.explain.explain import Explanation
    from graphs.split.proof import SplitProof


@click.command("split")
@click.argument("factory")
@click.option("--user", required=True, help="User-side inputs, comma-separated.")
@click.option("--item", required=True, help="Item-side inputs (and cross features), comma-separated.")
@click.option("--candidates", default=256, show_default=True, help="Candidates per request, for the speed-up limit.")
@click.option(
    "--explain", "explained", is_flag=True, help="Show cost per module, the user state, and where the sides meet."
)
@click.option("--graph", type=click.Path(path_type=Path, dir_okay=False), help="Write a diagram of the cut (HTML).")
@click.option(
    "--hoisting/--no-hoisting",
    default=True,
    show_default=True,
    help="Move the user columns of GEMMs to the user graph.",
)
@click.option(
    "--min-reuse",
    type=SHARE,
    default=0.0,
    show_default=True,
    help="Fail if a smaller share of the FLOPs runs once per request.",
)
@jagged_options
@click.option("--json", "as_json", is_flag=True, help="Print the explanation and the proof as JSON.")
def split_command(
    factory: str,
    user: str,
    item: str,
    candidates: int,
    explained: bool,
    graph: Path | None,
    hoisting: bool,
    min_reuse: float,
    as_json: bool,
    **declared: str,
) -> None:
    """Split the model that FACTORY (path/to/file.py:function) returns, and verify the subgraphs on random rows.

    The function takes no arguments and returns (module, example_inputs); all example tensors are batch first. A model
    with little to reuse is split all the same, with a warning.
    """
    if candidates < 1:
        raise UgsepError(f"--candidates is {candidates}; it must be an integer >= 1")
    # Imported here because these import torch, which would slow down every other command.
    from graphs.explain.explain import explain
    from graphs.explain.picture import draw
    from graphs.explain.reuse import check_reuse, little_reuse
    from graphs.explain.text import render, summary
    from graphs.split.proof import prove_split
    from graphs.split.split import split
    from graphs.trace.factory import load_factory
    from graphs.trace.jagged.flat import flat_model
    from graphs.trace.widen import WIDENED

    with redirect_stdout(sys.stderr):  # keep prints of the user's code out of our output
        flat = flat_model(*load_factory(factory), declared_features(**declared))
        users, items = flat.inputs_of(_names(user)), flat.inputs_of(_names(item))
        split_model = split(flat.module, flat.example, user=users, item=items, hoisting=hoisting)
        check_reuse(split_model, min_reuse)
        proof = prove_split(split_model)
    if little := little_reuse(split_model):
        echo_text(f"warning: {little}", err=True)
    explanation = explain(split_model, candidates)
    if graph is not None:
        graph.write_text(draw(split_model, factory, candidates), encoding="utf-8")
    if as_json:
        click.echo(
            json.dumps({"proof": dataclasses.asdict(proof), "split": to_json(explanation)}, indent=2, sort_keys=True)
        )
        return
    console = stdout_console(soft_wrap=not explained)
    console.print(render(explanation) if explained else summary(explanation))
    console.print(_proof_line(proof))
    if split_model.traced.widened:
        console.print(WIDENED)
    if graph is not None:
        console.print(f"wrote diagram to {graph}")


def to_json(explanation: Explanation) -> dict[str, Any]:
    """Return an explanation as JSON-serializable values."""
    values = dataclasses.asdict(explanation)
    for state in values["state"]:
        state["dtype"] = str(state["dtype"]).removeprefix("torch.")
    return values


def _names(text: str) -> list[str]:
    return [n.strip() for n in text.split(",") if n.strip()]


def _proof_line(proof: SplitProof) -> str:
    return (
        f"max error {proof.max_abs:.2g} ({proof.max_rel:.2g} of the largest output) on {proof.rows} random rows; "
        f"largest influence of one row on another: {proof.row_max_abs:.2g}"
    )
