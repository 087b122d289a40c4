"""int8 embedding tables: gather rows as int8 and scale only those, never dequantize the whole table."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from export import names
from export.lowering.nodes import add_initializer, add_node, int8_weight, ints


def gather_int8_rows(graph: ir.Graph) -> frozenset[str]:
    """Rewrite Gather(DequantizeLinear(table [V, D], scale), ids), axis 0; return the tables' names.

    The scale is one per row ([V], axis 0), one per column ([D], axis 1) or one for all. Rows are the same
    floats bit for bit: float(q) * scale either way.
    """
    found: set[str] = set()
    for node in list(graph):
        if node.op_type != "Gather" or ints(node, "axis", 0) != 0:
            continue
        table = int8_weight(node.inputs[0])
        if table is None or table.q.ndim != 2:
            continue
        ids, out = node.inputs[1], node.outputs[0]
        name = str(out.name)
        rows = add_node(
            node, "Gather", [table.values, ids], {"axis": 0}, name=names.derived(name, "int8"), like=table.values
        )
        dtype = ir.DataType.from_numpy(table.s.dtype)
        floats = add_node(node, "Cast", [rows], {"to": int(dtype)}, name=names.derived(name, "float"), like=out)
        if table.s.ndim == 1 and table.axis in (0, -2):
            row_scale = add_node(
                node, "Gather", [table.scale, ids], {"axis": 0}, name=names.derived(name, "scale"), like=out
            )
            axes = add_initializer(graph, names.shared("axes", "last"), np.array([-1], dtype=np.int64))
            factor = add_node(
                node, "Unsqueeze", [row_scale, axes], name=names.derived(name, "scale", "column"), like=out
            )
        else:
            factor = table.scale
        out.name = names.derived(name, "before")
        rescaled = add_node(node, "Mul", [floats, factor], name=name, like=out)
        rescaled.shape = out.shape
        ir.convenience.replace_all_uses_with(out, rescaled, replace_graph_outputs=True)
        found.add(str(table.values.name))
    return frozenset(found)
