"""ONNX files: the stamps in their metadata, and whole graphs."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks.reliability.fuzz.guided.parser import Parser, joined, parted
from benchmarks.reliability.fuzz.mutate.json_values import mutate_json
from benchmarks.reliability.fuzz.mutate.onnx_graphs import mutate_onnx
from export.metadata import keep_float_patterns, side_of
from quant.graph.gemms import load_graph, weights_of
from quant.inspect import inspect_graph
from quant.weight_table import QuantRow, QuantTable, table_of

__all__ = ["graph", "metadata"]

_KEEP = json.dumps(["heads.*", "router.weight"])


def metadata(folder: Path) -> Parser:
    """The stamps ``ugsep.keep_float`` and ``ugsep.quant`` of a sound graph."""
    path, sound = folder / "item.onnx", _graph()
    row = QuantRow("tower.weight", "item", "matmul", (4, 3), "mse", 0, 8, 40.5, None, 48, 24)
    lossless = QuantRow("table", "item", "table", (5, 4), "", 0, 32, float("inf"), 50.5, 80, 80, "policy", "note")
    table = json.dumps(QuantTable("item", "mse", "ab" * 32, (row, lossless), ("item.onnx",)).to_json())

    def parse(data: bytes) -> None:
        keep, quant = (part.decode("utf-8", "replace") for part in parted(data))  # protobuf holds UTF-8 only
        helper.set_model_props(sound, {"ugsep.side": "item", "ugsep.keep_float": keep, "ugsep.quant": quant})
        path.write_bytes(sound.SerializeToString())
        found = table_of(path)
        for one in () if found is None else found.rows:
            json.dumps(one.to_json(), allow_nan=False)
        keep_float_patterns(load_graph(path), path)

    return Parser(parse, (joined(_KEEP.encode(), table.encode()), joined(b"[]", table.encode())), _either)


def graph(folder: Path) -> Parser:
    """A graph as ``quant inspect`` reads it."""
    path = folder / "item.onnx"

    def parse(data: bytes) -> None:
        path.write_bytes(data)
        inspect_graph(path)
        model = load_graph(path)
        side_of(model, path)
        weights_of(model)

    return Parser(parse, (_graph().SerializeToString(),), mutate_onnx)


def _graph() -> onnx.ModelProto:
    """Return a table, a layer and a 3-D layer with a head."""
    rng = np.random.default_rng(0)
    shapes = {"table": (5, 4), "tower.weight": (4, 3), "tokens.weight": (2, 3, 3), "heads.like": (3, 1)}
    weights = [
        numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name) for name, shape in shapes.items()
    ]
    axes = numpy_helper.from_array(np.array([1], np.int64), "axes")
    nodes = [
        helper.make_node("Gather", ["table", "item_id"], ["embedded"], name="gather", axis=0),
        helper.make_node("MatMul", ["embedded", "tower.weight"], ["hidden"]),
        helper.make_node("MatMul", ["hidden", "tokens.weight"], ["tokens"]),
        helper.make_node("MatMul", ["hidden", "heads.like"], ["logit"]),
        helper.make_node("Squeeze", ["logit", "axes"], ["like"]),
    ]
    inputs = [helper.make_tensor_value_info("item_id", TensorProto.INT64, ["candidates"])]
    outputs = [helper.make_tensor_value_info("like", TensorProto.FLOAT, ["candidates"])]
    made = helper.make_model(
        helper.make_graph(nodes, "item", inputs, outputs, [*weights, axes]),
        opset_imports=[helper.make_opsetid("", 21)],
        ir_version=10,
    )
    helper.set_model_props(made, {"ugsep.side": "item", "ugsep.keep_float": _KEEP})
    return made


def _either(data: bytes, rng: random.Random) -> bytes:
    keep, quant = parted(data)
    return joined(mutate_json(keep, rng), quant) if rng.random() < 0.3 else joined(keep, mutate_json(quant, rng))
