"""The table of quantized weights on stdout."""

from __future__ import annotations

from collections.abc import Iterable

from rich.table import Table

from engines.render.console import print_table
from graphs.base.errors import printable_line
from quant.weight_table import QuantRow


def show_rows(rows: Iterable[QuantRow]) -> None:
    """Print how each weight was quantized, or why it was not."""
    table = Table("graph", "weight", "shape", "precision", "scheme", "bytes", "SQNR dB", "reason")
    for row in rows:
        sqnr = "" if row.sqnr_db == float("inf") else f"{row.sqnr_db:.1f}"
        shape = "x".join(map(str, row.shape))
        scheme = f"{row.scheme}/{row.block}" if row.block else row.scheme
        cells = (row.precision, scheme, f"{row.quantized_bytes:,}", sqnr, row.reason_if_skipped)
        # Names and reasons come from the file: they must not control the terminal.
        table.add_row(*map(printable_line, (row.graph, row.weight, shape, *cells)))
    print_table(table)
