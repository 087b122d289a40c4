"""Reshapes and slices that change nothing leave the graph, and no others."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import torch
from torch import nn

from export.canonical import canonicalize
from export.onnx_file import Stamp, export_subgraph
from graphs.split.split import split

N = 5


class Pieces(nn.Module):
    """Items through an axis of one and its ``unbind``, as a group of features with one token goes."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.tokens = tokens
        self.project = nn.Linear(3, tokens * 4)

    def forward(self, u: torch.Tensor, i: torch.Tensor) -> torch.Tensor:
        pieces = self.project(i).view(-1, self.tokens, 4).unbind(1)
        return torch.stack([torch.relu(piece) for piece in pieces], 1).sum(1) * u


def exported(module: nn.Module, path: Path) -> Counter[str]:
    """Export the item graph, check its scores, and count its ops."""
    torch.manual_seed(1)
    rows = torch.randn(N, 4), torch.randn(N, 3)
    parts = split(module.eval(), rows, user=["u"], item=["i"])
    state = parts.user({"u": torch.randn(2, 4)})
    feeds = {"i": torch.randn(N, 3), **state, "user_index": torch.tensor([0, 1, 1, 0, 1])}
    axes = {name: "users" for name in state} | {"i": "candidates", "user_index": "candidates"}
    export_subgraph(parts.item, feeds, axes, path, Stamp("pieces", "item", "fp32", ()))
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {name: value.numpy() for name, value in feeds.items()})
    want = next(iter(parts.item(feeds).values()))
    # Products of 3 and sums of at most 3 terms: a few roundings of 2^-24 of values near 1.
    np.testing.assert_allclose(got, want.detach().numpy(), rtol=1e-5, atol=1e-6)
    return Counter(node.op_type for node in ir.load(path).graph)


class Contracted(nn.Module):
    """Products whose weights are transposed in name only, and in fact."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.Parameter(torch.randn(3, 4))
        self.turned = nn.Parameter(torch.randn(4, 3))

    def forward(self, u: torch.Tensor, i: torch.Tensor) -> torch.Tensor:
        whole = torch.tensordot(i, self.plain.permute(0, 1), ([-1], [0])) + i @ self.turned.permute(1, 0)
        return (whole + torch.einsum("nk,kd->nd", i, self.plain) * 2) * u


def test_a_weight_is_transposed_only_where_its_axes_change_places(tmp_path: Path) -> None:
    assert exported(Contracted(), tmp_path / "item.onnx")["MatMul"]


def test_an_axis_of_one_and_its_unbind_leave_no_reshape(tmp_path: Path) -> None:
    ops = exported(Pieces(1), tmp_path / "item.onnx")
    assert not {"Reshape", "Slice", "Squeeze", "Split"} & set(ops), ops


def test_an_axis_of_two_is_still_cut(tmp_path: Path) -> None:
    ops = exported(Pieces(2), tmp_path / "item.onnx")
    assert ops["Reshape"] == 1
    assert {"Split", "Slice", "Gather"} & set(ops), ops


class Cut(nn.Module):
    """A state that is a piece of a larger value, cut with sizes."""

    def forward(self, u: torch.Tensor, i: torch.Tensor) -> torch.Tensor:
        first, second, third = torch.tanh(u).split([1, 2, 1], 1)
        halves = torch.sin(u).chunk(2, 1)
        mine = second.exp().sum(1, keepdim=True) + halves[0][:, :1] * third
        return (first * i.sum(1, keepdim=True) + mine * i[:, :1] + halves[1][:, 1:] * i[:, 1:2]).squeeze(1)


def test_pieces_of_a_split_have_types(tmp_path: Path) -> None:
    parts = split(Cut(), (torch.randn(N, 4), torch.randn(N, 3)), user=["u"], item=["i"])
    path = tmp_path / "user.onnx"
    export_subgraph(parts.user, {"u": torch.randn(2, 4)}, {"u": "users"}, path, Stamp("cut", "user", "fp32", ()))
    cuts = [node for node in ir.load(path).graph if node.op_type == "Split"]
    assert cuts
    assert all(value.type is not None and value.shape is not None for node in cuts for value in node.outputs)


def graph_of(*nodes: ir.Node, inputs: list[ir.Value]) -> ir.Model:
    graph = ir.Graph(inputs, list(nodes[-1].outputs), nodes=nodes, opset_imports={"": 21})
    return ir.Model(graph, ir_version=10)


def reshape(value: ir.Value, sizes: list[int], shape: list[int | str | None]) -> ir.Node:
    wanted = ir.tensor(np.array(sizes, np.int64))
    constant = ir.node("Constant", [], {"value": wanted})
    constant.outputs[0].const_value, constant.outputs[0].shape = wanted, ir.Shape([len(sizes)])
    node = ir.node("Reshape", [value, constant.outputs[0]])
    node.outputs[0].shape, node.outputs[0].type = ir.Shape(shape), ir.TensorType(ir.DataType.FLOAT)
    return node


def test_only_shapes_known_to_be_equal_cancel() -> None:
    for rows, left in (("n", 0), (None, 2)):
        x = ir.Value(name="x", shape=ir.Shape([rows, 6]), type=ir.TensorType(ir.DataType.FLOAT))
        first = reshape(x, [-1, 2, 3], [rows, 2, 3])
        second = reshape(first.outputs[0], [-1, 6], [rows, 6])
        last = ir.node("Relu", [second.outputs[0]])
        last.outputs[0].name, last.outputs[0].shape = "y", ir.Shape([rows, 6])
        last.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        constants = [node.inputs[1].producer() for node in (first, second)]
        model = graph_of(*constants, first, second, last, inputs=[x])
        canonicalize(model)
        assert Counter(node.op_type for node in model.graph)["Reshape"] == left
