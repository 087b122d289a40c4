"""Tiny graphs in the canonical form, fresh random weights, for the lowering and backend tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Array = NDArray[Any]


class Graph:
    """Collects nodes and initializers; `weight` adds a float or an int8 weight in the canonical encoding."""

    def __init__(self, rng: np.random.Generator, int8: bool) -> None:
        self.rng, self.int8 = rng, int8
        self.nodes: list[Any] = []
        self.inits: dict[str, Array] = {}
        self.count = 0

    def add(self, op: str, *inputs: str, out: str = "", **attributes: Any) -> str:
        self.count += 1
        name = out or f"{op.lower()}_{self.count}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], **attributes))
        return name

    def const(self, name: str, array: Array) -> str:
        self.inits[name] = np.asarray(array)
        return name

    def weight(self, name: str, *shape: int) -> str:
        if not self.int8:
            scale = 1 / np.sqrt(shape[-2])
            return self.const(name, (self.rng.standard_normal(shape) * scale).astype(np.float32))
        q = self.const(name, self.rng.integers(-127, 128, shape, dtype=np.int8))
        columns = (shape[-1],) if len(shape) == 2 else (shape[0], 1, shape[2])
        s = (self.rng.uniform(0.5, 1.5, columns) / 127 / np.sqrt(shape[-2])).astype(np.float32)
        extra = {} if len(shape) == 2 else {"block_size": shape[1]}
        return self.add("DequantizeLinear", q, self.const(f"{name}.scale", s), out=f"{name}.float", axis=1, **extra)

    def bias(self, name: str, *shape: int) -> str:
        return self.const(name, self.rng.standard_normal(shape).astype(np.float32))

    def save(
        self,
        path: Path,
        inputs: dict[str, tuple[int, list[Any]]],
        outputs: dict[str, list[Any]],
        check: bool = True,
    ) -> Path:
        graph = helper.make_graph(
            self.nodes,
            "tiny",
            [helper.make_tensor_value_info(n, t, s) for n, (t, s) in inputs.items()],
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in outputs.items()],
            [numpy_helper.from_array(a, n) for n, a in self.inits.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
        if check:
            onnx.checker.check_model(model, full_check=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        onnx.save(model, path, save_as_external_data=True, location=f"{path.name}.data", size_threshold=512)
        return path


FFN_SHAPE = (3, 24, 40)  # tokens, width, hidden: no two alike


def ffn(path: Path, rng: np.random.Generator, int8: bool, kind: str) -> Path:
    """Per-token feed-forward over x [N, T, D], GELU or SwiGLU, post-norm, a dense head: logits [N]."""
    t, d, h = FFN_SHAPE
    g = Graph(rng, int8)
    x = g.add("Transpose", "x", perm=[1, 0, 2])
    up = g.add("Add", g.add("MatMul", x, g.weight("up.weight", t, d, h)), g.bias("up.bias", t, 1, h))
    if kind == "gelu":
        mid = g.add("Gelu", up)
    else:
        gate = g.add("MatMul", x, g.weight("gate.weight", t, d, h))
        mid = g.add("Mul", g.add("Mul", gate, g.add("Sigmoid", gate)), up)
    down = g.add("Add", g.add("MatMul", mid, g.weight("down.weight", t, h, d)), g.bias("down.bias", t, 1, d))
    y = g.add("Add", g.add("Transpose", down, perm=[1, 0, 2]), "x")
    y = g.add("LayerNormalization", y, g.const("norm.weight", np.ones(d, np.float32)), axis=-1)
    flat = g.add("Reshape", y, g.const("flat", np.array([0, t * d])))
    hidden = g.add("Add", g.add("MatMul", flat, g.weight("dense.weight", t * d, 16)), g.bias("dense.bias", 16))
    head = g.const("head.weight", rng.standard_normal((16, 1)).astype(np.float32))
    logit = g.add("MatMul", g.add("Relu", hidden), head)
    g.add("Reshape", logit, g.const("column", np.array([-1])), out="click")
    return g.save(path, {"x": (TensorProto.FLOAT, ["candidates", t, d])}, {"click": ["candidates"]})


def item(path: Path, rng: np.random.Generator, int8: bool) -> Path:
    """Item side: an embedding, user state gathered by user_index, tokens concatenated, a GEMM per feature token."""
    t, d, h = 2, 16, 20
    g = Graph(rng, int8)
    if int8:
        table = g.const("table", rng.integers(-127, 128, (50, d), dtype=np.int8))
        scale = g.const("table.scale", rng.uniform(0.001, 0.01, 50).astype(np.float32))
        rows = g.add("DequantizeLinear", table, scale, axis=0)
    else:
        rows = g.bias("table", 50, d)
    axis = g.const("axis", np.array([1]))
    token = g.add("Unsqueeze", g.add("Gather", rows, "ids", axis=0), axis)
    state = g.add("Unsqueeze", g.add("Gather", "state", "user_index", axis=0), axis)
    x = g.add("Transpose", g.add("Concat", token, state, axis=1), perm=[1, 0, 2])
    y = g.add("Sigmoid", g.add("MatMul", x, g.weight("mix.weight", t, d, h)))
    pooled = g.add("ReduceMean", y, g.const("pool", np.array([0])), keepdims=0)
    g.add("ReduceMean", pooled, axis, keepdims=0, out="click")
    rows_of = {"ids": "candidates", "user_index": "candidates"}
    inputs: dict[str, tuple[int, list[Any]]] = {n: (TensorProto.INT64, [r]) for n, r in rows_of.items()}
    inputs["state"] = (TensorProto.FLOAT, ["users", d])
    return g.save(path, inputs, {"click": ["candidates"]})


def reference(path: Path, feeds: dict[str, Array]) -> dict[str, Array]:
    """Run a file in ONNX Runtime with every optimisation off: the graph as it is written."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds), strict=True))


def to_half(source: Path, path: Path) -> Path:
    """The FP16-typed twin of a graph: float initializers, inputs and outputs as FP16, int8 bytes the same."""
    model = onnx.load(source)
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            fp16 = numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(fp16, tensor.name))
    for info in (*model.graph.input, *model.graph.output):
        if info.type.tensor_type.elem_type == TensorProto.FLOAT:
            info.type.tensor_type.elem_type = TensorProto.FLOAT16
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path
