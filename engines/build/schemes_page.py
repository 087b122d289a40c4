"""The tables of ``ugsep schemes`` in a Markdown file, one section per model."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from engines.build.schemes import SchemeRow, SchemeTable
from engines.render.byte_sizes import readable_bytes
from engines.render.markdown import table, write_section
from engines.verify.agreement import EXACT_DB

_HEADER = "# Quantization\n"
_HEADS = (
    "scheme", "weights dB", "served dB", "Kendall tau", "AUC change, weights", "AUC change, served", "weights",
    "user ms", "user GB/s", "item ms", "seconds to quantize",
)  # fmt: skip


def write_markdown(path: Path, tables: Iterable[SchemeTable]) -> None:
    """Write each table to its section of the file."""
    for shown in tables:
        write_section(path, f"schemes {shown.model}", markdown(shown), _HEADER)


def markdown(shown: SchemeTable) -> str:
    """Return the table of one model, with a heading and a line on how it was measured."""
    served = ", ".join(f"{side} {what}" for side, what in shown.precision.items())
    synthetic = " Requests or weights are synthetic, so quality is meaningless." if shown.synthetic else ""
    lines = [
        f"### {shown.model}",
        "",
        f"{shown.requests} held-out requests, {shown.rows_scored:,} rows; served by {served}; "
        f"{shown.threads} thread(s), N = {shown.candidates}; "
        f"copy bandwidth {shown.copy_gb_s:.1f} GB/s.{synthetic}",
        "",
        *table(_HEADS, [_row(row, row.scheme == shown.chosen) for row in shown.rows]),
    ]
    return "\n".join(lines) + "\n"


def _row(row: SchemeRow, chosen: bool) -> list[str]:
    name = f"**{row.scheme}** (recipe)" if chosen else row.scheme
    quality = [_decibels(row.weights_db), _decibels(row.served_db), f"{row.kendall_tau:.5f}"]
    changes = ["-" if c is None else f"{c:+.1e}" for c in (row.weights_auc_change, row.served_auc_change)]
    seconds = f"{row.seconds:.1f}" if row.seconds else "-"
    cost = [readable_bytes(row.weight_bytes), f"{row.user_ms:.3f}", f"{row.user_gb_s:.1f}"]
    cost += [f"{row.item_ms:.2f}", seconds]
    return [name, *quality, *changes, *cost]


def _decibels(value: float) -> str:
    return "exact" if value >= EXACT_DB else f"{value:.1f}"
