"""A tiny pair of canonical graphs (2-D and 3-D MatMuls, tables, a norm, state, user_index) and data for it."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from onnx import TensorProto, helper, numpy_helper

from quant.graph.gemms import load_graph, read_tensor

TOKENS, WIDTH, HIDDEN, USERS, ITEMS = 3, 10, 14, 41, 67
F, I64 = TensorProto.FLOAT, TensorProto.INT64


def _save(name, nodes, inputs, outputs, constants, path, keep_float=(), threshold=1 << 20):
    graph = helper.make_graph(
        nodes, name, inputs, outputs, [numpy_helper.from_array(v, k) for k, v in constants.items()]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    properties = {"ugsep.side": name, "ugsep.precision": "fp32", "ugsep.keep_float": json.dumps(list(keep_float))}
    helper.set_model_props(model, properties)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path, save_as_external_data=True, location=f"{path.name}.data", size_threshold=threshold)
    return path


def write_graphs(folder: Path, seed: int = 0, threshold: int = 1 << 20) -> tuple[Path, Path]:
    r = np.random.default_rng(seed)

    def normal(*shape, scale=1.0):
        # an asymmetric, heavy-tailed weight: a transposed or misplaced scale cannot pass
        return (r.standard_t(3, shape) * scale * np.linspace(0.5, 2.0, shape[-1])).astype(np.float32)

    folder.mkdir(parents=True, exist_ok=True)
    value = helper.make_tensor_value_info
    user = _save(
        "user",
        [
            helper.make_node("Gather", ["user.table", "user_id"], ["user_rows"], axis=0),
            helper.make_node("Concat", ["user_rows", "user_dense"], ["user_x"], axis=1),
            helper.make_node("MatMul", ["user_x", "user.in.weight"], ["user_y"]),
            helper.make_node("Add", ["user_y", "user.in.bias"], ["user_z"]),
            helper.make_node("Relu", ["user_z"], ["state"]),
        ],
        [value("user_id", I64, ["users"]), value("user_dense", F, ["users", 4])],
        [value("state", F, ["users", 8])],
        {
            "user.table": normal(USERS, 5),
            "user.in.weight": normal(9, 8, scale=0.3),
            "user.in.bias": normal(8),
        },
        folder / "user.onnx",
        threshold=threshold,
    )
    wide = TOKENS * WIDTH
    item = _save(
        "item",
        [
            helper.make_node("Gather", ["item.table", "item_id"], ["item_rows"], axis=0),
            helper.make_node("Gather", ["state", "user_index"], ["state_rows"], axis=0),
            helper.make_node("Concat", ["item_rows", "item_dense", "state_rows"], ["item_x"], axis=1),
            helper.make_node("MatMul", ["item_x", "item.in.weight"], ["tokens_flat"]),
            helper.make_node("Reshape", ["tokens_flat", "token_shape"], ["tokens"]),
            helper.make_node("Pow", ["tokens", "two"], ["squared"]),
            helper.make_node("ReduceMean", ["squared", "last_axis"], ["mean"], keepdims=1),
            helper.make_node("Add", ["mean", "eps"], ["mean_eps"]),
            helper.make_node("Sqrt", ["mean_eps"], ["rms"]),
            helper.make_node("Div", ["tokens", "rms"], ["normed"]),
            helper.make_node("Mul", ["normed", "norm.gain"], ["gained"]),
            helper.make_node("Transpose", ["gained"], ["per_token"], perm=[1, 0, 2]),
            helper.make_node("MatMul", ["per_token", "ffn.up.weight"], ["up"]),
            helper.make_node("Add", ["up", "ffn.up.bias"], ["up_bias"]),
            helper.make_node("Relu", ["up_bias"], ["hidden"]),
            helper.make_node("MatMul", ["hidden", "ffn.down.weight"], ["down"]),
            helper.make_node("ReduceMean", ["down", "first_axis"], ["pooled"], keepdims=0),
            helper.make_node("MatMul", ["pooled", "head.click.weight"], ["logit_column"]),
            helper.make_node("Squeeze", ["logit_column", "last_axis"], ["click"]),
        ],
        [
            value("item_id", I64, ["candidates"]),
            value("item_dense", F, ["candidates", 3]),
            value("state", F, ["users", 8]),
            value("user_index", I64, ["candidates"]),
        ],
        [value("click", F, ["candidates"])],
        {
            "item.table": normal(ITEMS, 6),
            "item.in.weight": normal(17, wide, scale=0.3),
            "token_shape": np.array([-1, TOKENS, WIDTH]),
            "two": np.array(2.0, np.float32),
            "last_axis": np.array([-1]),
            "first_axis": np.array([0]),
            "eps": np.array(1e-6, np.float32),
            "norm.gain": normal(WIDTH),
            "ffn.up.weight": normal(TOKENS, WIDTH, HIDDEN, scale=0.3),
            "ffn.up.bias": normal(TOKENS, 1, HIDDEN),
            "ffn.down.weight": normal(TOKENS, HIDDEN, WIDTH, scale=0.3),
            "head.click.weight": normal(WIDTH, 1),
        },
        folder / "item.onnx",
        keep_float=("head.*", "norm.*"),
        threshold=threshold,
    )
    return user, item


def columns(requests: int, seed: int = 1) -> dict[str, np.ndarray]:
    """Columns of a data file: requests of 1 to 9 candidates, user features repeated within each."""
    r = np.random.default_rng(seed)
    counts = r.integers(1, 10, requests)
    rows = int(counts.sum())
    return {
        "request_id": np.repeat(np.arange(requests) * 7, counts),
        "user_id": np.repeat(r.integers(0, USERS, requests), counts),
        "user_dense": np.repeat(r.standard_normal((requests, 4)).astype(np.float32), counts, axis=0),
        "item_id": r.integers(0, ITEMS, rows),
        "item_dense": r.standard_normal((rows, 3)).astype(np.float32) + np.float32(0.5),
        "click": r.integers(0, 2, rows).astype(np.float32),
    }


def table(data: dict[str, np.ndarray]) -> pa.Table:
    def column(values):
        if values.ndim == 1:
            return pa.array(values)
        return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])

    return pa.table({name: column(values) for name, values in data.items()})


def write_shards(folder: Path, data: dict[str, np.ndarray], cuts: list[int]) -> list[Path]:
    """Write the rows as Parquet shards cut at the given rows."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = table(data)
    paths = []
    for number, (start, stop) in enumerate(zip([0, *cuts], [*cuts, whole.num_rows], strict=True)):
        paths.append(folder / f"part-{number}.parquet")
        parquet.write_table(whole.slice(start, stop - start), paths[-1])
    return paths


def constants(path: Path) -> dict[str, np.ndarray]:
    """The values of a file's initializers by name."""
    return {n: np.array(read_tensor(v.const_value)) for n, v in load_graph(path).graph.initializers.items()}


def model_of(nodes, inputs, outputs, constants) -> onnx.ModelProto:
    tensors = [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()]
    graph = helper.make_graph(nodes, "item", inputs, outputs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def run(model: onnx.ModelProto, **inputs):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options).run(None, inputs)


@pytest.fixture
def graphs(tmp_path: Path) -> tuple[Path, Path]:
    return write_graphs(tmp_path / "onnx")


@pytest.fixture
def make_graphs() -> Callable[..., tuple[Path, Path]]:
    return write_graphs


@pytest.fixture
def make_columns() -> Callable[..., dict[str, np.ndarray]]:
    return columns


@pytest.fixture
def make_table() -> Callable[..., pa.Table]:
    return table


@pytest.fixture
def make_shards() -> Callable[..., list[Path]]:
    return write_shards
