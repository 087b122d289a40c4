"""What is in a graph: every weight with precision, bytes and SQNR; in a bundle also what its engines made of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from graphs.base.errors import UgsepError
from quant.graph.gemms import keep_float_patterns, load_graph, matching, side_of, weights_of
from quant.weights import QuantRow, table_of


@dataclass(frozen=True)
class EngineFate:
    """What one engine of a bundle does with one weight: fused-int8, dequantized-each-run, folded-to-float, ...

    ``precision`` is what the engine was asked for, ``detail`` names the node, kernel or layer of the optimised graph.
    """

    engine: str
    side: str
    precision: str
    weight: str
    status: str
    detail: str


def engine_statuses(bundle: Path) -> tuple[EngineFate, ...]:
    """Return what the engines of a bundle did with their weights, from its manifest; () where there is none.

    Raises:
        UgsepError: the manifest cannot be read.
    """
    path = bundle / "manifest.json"
    if not path.is_file():
        return ()
    try:
        engines = json.loads(path.read_text())["engines"]
        return tuple(
            EngineFate(
                e["directory"], e["built"]["side"], e["built"]["precision"], w["name"], w["status"], w["detail"]
            )
            for e in engines
            for w in e["built"]["weights"]
        )
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise UgsepError(f"{path} is not a manifest ({error!r}); build the bundle again") from error


def inspect_graph(path: Path) -> tuple[QuantRow, ...]:
    """Return one row per weight: of a quantized graph the table stamped in it, of a float graph its candidates.

    Raises:
        UgsepError: the file cannot be read as ONNX.
    """
    table = table_of(path)
    if table is not None:
        return table.rows
    model = load_graph(path)
    side, keep = side_of(model, path), keep_float_patterns(model)
    rows = []
    for weight in weights_of(model):
        pattern = matching(weight.name, keep)
        reason = weight.refusal or (f"the model keeps '{pattern}' float" if pattern else "")
        size = weight.elements * 4
        rows.append(
            QuantRow(weight.name, side, weight.kind, weight.shape, "", 0, 32, float("inf"), None, size, size, reason)
        )
    return tuple(rows)
