"""The tables of ``ugsep schemes`` in a Markdown file, between marks, in place of older ones of the same models."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from engines.build.schemes import SchemeRow, SchemeTable
from engines.render.byte_sizes import readable_bytes
from engines.verify.agreement import EXACT_DB

_HEADER = "# Quantization\n"


def write_markdown(path: Path, tables: Iterable[SchemeTable]) -> None:
    """Write each table into the file; what stands outside the marks stays."""
    text = path.read_text(encoding="utf-8") if path.exists() else _HEADER
    for table in tables:
        begin, end = f"<!-- begin schemes {table.model} -->", f"<!-- end schemes {table.model} -->"
        section = f"{begin}\n{markdown(table)}{end}"
        if begin in text and end in text:
            text = text.split(begin, 1)[0] + section + text.split(end, 1)[1]
        else:
            text = f"{text.rstrip()}\n\n{section}\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def markdown(table: SchemeTable) -> str:
    """Return one model's table with a heading and a line on how it was measured."""
    served = ", ".join(f"{side} {what}" for side, what in table.precision.items())
    synthetic = " The requests or weights are synthetic: quality says nothing here." if table.synthetic else ""
    lines = [
        f"### {table.model}",
        "",
        f"{table.requests} held-out requests, {table.rows_scored:,} rows; served by {served}; "
        f"{table.threads} thread(s), N = {table.candidates}; "
        f"the machine copies {table.copy_gb_s:.1f} GB/s.{synthetic}",
        "",
        "| scheme | weights dB | served dB | Kendall tau | AUC change, weights | AUC change, served | weights | "
        "user ms | user GB/s | item ms | seconds to quantize |",
        "|---|" + "---:|" * 10,
    ]
    lines += [_row(row, row.scheme == table.chosen) for row in table.rows]
    return "\n".join(lines) + "\n"


def _row(row: SchemeRow, chosen: bool) -> str:
    name = f"**{row.scheme}** (recipe)" if chosen else row.scheme
    quality = [_decibels(row.weights_db), _decibels(row.served_db), f"{row.kendall_tau:.5f}"]
    changes = ["-" if c is None else f"{c:+.1e}" for c in (row.weights_auc_change, row.served_auc_change)]
    seconds = f"{row.seconds:.1f}" if row.seconds else "-"
    cost = [readable_bytes(row.weight_bytes), f"{row.user_ms:.3f}", f"{row.user_gb_s:.1f}"]
    cost += [f"{row.item_ms:.2f}", seconds]
    return f"| {' | '.join([name, *quality, *changes, *cost])} |"


def _decibels(value: float) -> str:
    return "exact" if value >= EXACT_DB else f"{value:.1f}"
