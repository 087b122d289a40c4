"""List the weights of a graph with precision, bytes and SQNR."""

from __future__ import annotations

from pathlib import Path

from export.metadata import keep_float_patterns, side_of
from quant.graph.gemms import load_graph, matching, weights_of
from quant.weight_table import QuantRow, float_row, table_of


def inspect_graph(path: Path) -> tuple[QuantRow, ...]:
    """Return one row per weight: the stamped table of a quantized graph, the candidates of a float graph.

    Raises:
        UgsepError: the file cannot be read as ONNX.
    """
    table = table_of(path)
    if table is not None:
        return table.rows
    model = load_graph(path)
    side, keep = side_of(model, path), keep_float_patterns(model, path)
    rows = []
    for weight in weights_of(model):
        pattern = matching(weight.name, keep)
        reason = weight.refusal or (f"the model keeps '{pattern}' float" if pattern else "")
        rows.append(float_row(weight, side, reason))
    return tuple(rows)
