"""int8 GEMMs as one node: DequantizeLinear + MatMul (+ Add) becomes ``com.microsoft.MatMulNBits``, 8 bits.

ONNX Runtime then runs int8 x int8 with 32-bit sums: activations are quantized per row and block while running
(``accuracy_level`` 4). The weight keeps its exact int8 values.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from export import names
from export.lowering.nodes import Int8Weight, add_initializer, add_node, constant, int8_weight, take_over
from export.lowering.passes import Lowering, Pass, matches

_BLOCKS = (256, 128, 64, 32, 16)
#: Block for a K that no block size divides; the last block is padded with the zero point.
_PADDED_BLOCK = 32
_INT8_ACTIVATIONS = 4


def match_gemm(node: ir.Node) -> Int8Weight | str:
    """Match MatMul(x [.., K], int8 weight [K, N]) with one scale per column ([N], axis 1) or one for all."""
    weight = int8_weight(node.inputs[1]) if node.op_type == "MatMul" and node.domain == "" else None
    if weight is None:
        return ""
    if weight.q.ndim != 2:
        return f"the weight has {weight.q.ndim} axes, not 2"
    return weight if weight.axis in (1, -1) else "scales are not per column"


def fuse_int8_gemms(lowering: Lowering) -> None:
    """Make one node of every matching MatMul and a bias after it."""
    fused = set()
    for node, weight in matches(lowering.graph, match_gemm):
        _fuse(lowering.graph, node, weight)
        fused.add(str(weight.values.name))
    lowering.record_fused(fused)
    lowering.model.opset_imports["com.microsoft"] = 1


FUSE_INT8_GEMMS = Pass("fuse int8 GEMMs", fuse_int8_gemms, match_gemm)


def _fuse(graph: ir.Graph, node: ir.Node, weight: Int8Weight) -> None:
    k, n = weight.q.shape
    block = block_size(k)
    name = names.derived(weight.values.name, "blocks")
    packed = graph.initializers.get(name)
    if packed is None:
        packed = add_initializer(graph, name, pack_blocks(weight.q, block))
    column_scales = np.broadcast_to(weight.s.reshape(-1, 1), (n, 1))
    scales = np.repeat(column_scales, -(-k // block), axis=1)  # [N, K / block]
    scale_value = add_initializer(graph, names.derived(weight.scale.name, "blocks"), scales)
    last, bias = _bias_after(graph, node, n)
    out = last.outputs[0]
    attributes = {"K": k, "N": n, "bits": 8, "block_size": block, "accuracy_level": _INT8_ACTIVATIONS}
    inputs = [node.inputs[0], packed, scale_value, None, None, bias]
    whole = add_node(
        last,
        "MatMulNBits",
        inputs if bias is not None else inputs[:3],
        attributes,
        name=str(out.name),
        like=out,
        domain="com.microsoft",
    )
    take_over(out, whole)


def block_size(k: int) -> int:
    """Return the largest block that divides K: longer blocks are faster, and the scale is the same in each."""
    return next((block for block in _BLOCKS if k % block == 0), _PADDED_BLOCK)


def pack_blocks(values: NDArray[Any], block: int) -> NDArray[np.uint8]:
    """Return int8 [K, N] as MatMulNBits stores it: uint8 [N, ceil(K / block), block], zero point 128."""
    k, n = values.shape
    blocks = -(-k // block)
    packed = np.full((n, blocks * block), 128, dtype=np.uint8)
    # Adding 128 to a two's complement byte is flipping its top bit.
    packed[:, :k] = values.view(np.uint8).T ^ 0x80
    return packed.reshape(n, blocks, block)


def _bias_after(graph: ir.Graph, node: ir.Node, n: int) -> tuple[ir.Node, ir.Value | None]:
    """Return the Add that only adds a constant [N] to the product, and that constant; else the node itself."""
    product = node.outputs[0]
    users = product.consumers()
    if len(users) != 1 or product.is_graph_output() or users[0].op_type != "Add":
        return node, None
    add = users[0]
    others = [value for value in add.inputs if value is not product]
    bias = constant(others[0]) if len(others) == 1 else None
    if bias is None or bias.size != n or bias.shape[-1:] != (n,) or bias.ndim > 2:
        return node, None
    assert others[0] is not None
    return add, others[0] if bias.ndim == 1 else add_initializer(
        graph, names.derived(others[0].name, "flat"), bias.reshape(n)
    )
