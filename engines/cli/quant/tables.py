"""The table of the weights of a graph on stdout."""

from __future__ import annotations

from collections.abc import Iterable

from rich.table import Table

from engines.render.console import print_table
from quant.weight_table import QuantRow


def show_rows(rows: Iterable[QuantRow]) -> None:
    """Print how each weight was quantized, or why it was not."""
    table = Table("graph", "weight", "shape", "precision", "scheme", "bytes", "SQNR dB", "reason")
    for row in rows:
        sqnr = "" if row.sqnr_db == float("inf") else f"{row.sqnr_db:.1f}"
        shape = "x".join(map(str, row.shape))
        scheme = f"{row.scheme}/{row.block}" if row.block else row.scheme
        cells = (row.precision, scheme, f"{row.quantized_bytes:,}", sqnr, row.reason_if_skipped)
        table.add_row(row.graph, row.weight, shape, *cells)
    print_table(table)
