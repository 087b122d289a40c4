"""int8 embedding tables: gather rows as int8 and scale only those, never dequantize the whole table."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from export import names
from export.lowering.nodes import Int8Weight, add_initializer, add_node, int8_weight, ints, take_over
from export.lowering.passes import Lowering, Pass, matches


def match_table(node: ir.Node) -> Int8Weight | str:
    """Match Gather(DequantizeLinear(table [V, D], scale), ids), axis 0."""
    table = int8_weight(node.inputs[0]) if node.op_type == "Gather" else None
    if table is None:
        return ""
    if ints(node, "axis", 0) != 0:
        return "gathers along another axis than the rows of the table"
    return table if table.q.ndim == 2 else f"the table has {table.q.ndim} axes, not 2"


def gather_int8_rows(lowering: Lowering) -> None:
    """Gather rows before they are dequantized.

    The scale is one per row ([V], axis 0), one per column ([D], axis 1) or one for all. Rows are the same floats bit
    for bit: float(q) * scale either way.
    """
    for node, table in matches(lowering.graph, match_table):
        ids, out = node.inputs[1], node.outputs[0]
        name = str(out.name)
        by_row = {"axis": 0}
        rows = add_node(
            node, "Gather", [table.values, ids], by_row, name=names.derived(name, "int8"), like=table.values
        )
        dtype = ir.DataType.from_numpy(table.s.dtype)
        floats = add_node(node, "Cast", [rows], {"to": int(dtype)}, name=names.derived(name, "float"), like=out)
        factor = table.scale
        if table.s.ndim == 1 and table.axis in (0, -2):
            scale = add_node(node, "Gather", [factor, ids], by_row, name=names.derived(name, "scale"), like=out)
            axes = add_initializer(lowering.graph, names.shared("axes", "last"), np.array([-1], dtype=np.int64))
            column = names.derived(name, "scale", "column")
            factor = add_node(node, "Unsqueeze", [scale, axes], name=column, like=out)
        take_over(out, add_node(node, "Mul", [floats, factor], name=name, like=out))
        lowering.gathered.add(str(table.values.name))


GATHER_INT8_ROWS = Pass("gather int8 rows", gather_int8_rows, match_table)
