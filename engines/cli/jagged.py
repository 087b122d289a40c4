"""The options that declare the jagged features of TorchRec models, shared by ``ugsep split`` and ``ugsep build``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from graphs.trace.jagged.options import JaggedOptions


def jagged_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to a command; pass their values to ``declared_features``."""
    for option in (
        click.option(
            "--embeddings",
            type=click.Choice(["inside", "outside"]),
            default="inside",
            show_default=True,
            help="TorchRec: outside, looked up embeddings are inputs, and the tables stay in a parameter server.",
        ),
        click.option("--single", default="", help="TorchRec: features with exactly one id per row, comma-separated."),
        click.option(
            "--max-lengths", default="", help="TorchRec: most ids of a feature per row  [default: as in the example]"
        ),
    ):
        command = option(command)
    return command


def declared_features(max_lengths: str, single: str, embeddings: str) -> JaggedOptions:
    """Return what the options declare.

    Raises:
        UgsepError: a length is no number.
    """
    from graphs.trace.jagged.options import JaggedOptions, parse_max_lengths

    names = tuple(n.strip() for n in single.split(",") if n.strip())
    return JaggedOptions(parse_max_lengths(max_lengths), names, embeddings == "outside")
