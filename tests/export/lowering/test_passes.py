from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.lowering import lower_for_cpu
from export.lowering.matmul_nbits import block_size, pack_blocks
from graphs.base.errors import UgsepError
from tests.export.lowering_graphs import FFN_SHAPE, Graph, ffn, item, reference

ROWS = (1, 2, 257)
FLOAT = onnx.TensorProto.FLOAT


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng()


def _ops(path: Path) -> dict[str, int]:
    counts: dict[str, int] = {}
    for node in onnx.load(path, load_external_data=False).graph.node:
        counts[node.op_type] = counts.get(node.op_type, 0) + 1
    return counts


@pytest.mark.parametrize("kind", ["gelu", "swiglu"])
@pytest.mark.parametrize("int8", [False, True])
def test_per_token_chains_are_equal_and_stay_per_token(
    tmp_path: Path, rng: np.random.Generator, kind: str, int8: bool
) -> None:
    tokens, width, _ = FFN_SHAPE
    source = ffn(tmp_path / "a.onnx", rng, int8, kind)
    lowered = lower_for_cpu(source, tmp_path / "b.onnx")
    for rows in ROWS:
        x = rng.standard_normal((rows, tokens, width)).astype(np.float32)
        want, got = reference(source, {"x": x})["click"], reference(lowered.path, {"x": x})["click"]
        # Same products, other summation order: K <= 72 terms of size ~1 round to 72 * 2^-24, twice through.
        np.testing.assert_allclose(got, want, rtol=0, atol=2e-5)
        assert np.ptp(want) > 0 or rows == 1
    ops = _ops(lowered.path)
    # One Split at the start and one Concat at the end: nothing is stacked inside the chain, no Transpose is left.
    assert (ops["Split"], ops["Concat"], ops.get("Transpose", 0)) == (1, 1, 0)
    assert ops["MatMul"] == (2 if kind == "gelu" else 3) * tokens + 2
    assert lowered.parts["up.weight"] == tuple(f"up.weight[{t}]" for t in range(tokens))


def test_fp16_weights_are_cut_as_float_ones_are(tmp_path: Path, rng: np.random.Generator) -> None:
    tokens, width, _ = FFN_SHAPE
    source = _with_fp16_weights(ffn(tmp_path / "a.onnx", rng, False, "swiglu"), tmp_path / "half.onnx")
    lowered = lower_for_cpu(source, tmp_path / "b.onnx")
    ops = _ops(lowered.path)
    assert (ops["MatMul"], ops["Cast"]) == (3 * tokens + 2, 3 * tokens)
    assert lowered.parts["up.weight"] == tuple(f"up.weight[{t}]" for t in range(tokens))
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(lowered.path).graph.initializer}
    assert stored["up.weight[0]"].dtype == np.float16
    x = rng.standard_normal((5, tokens, width)).astype(np.float32)
    want, got = reference(source, {"x": x})["click"], reference(lowered.path, {"x": x})["click"]
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-5)  # as for float weights above


def _with_fp16_weights(source: Path, path: Path) -> Path:
    """Store the stacked weights in FP16, each behind a Cast, as quantized graphs hold them."""
    model = onnx.load(source)
    casts = []
    for tensor in model.graph.initializer:
        if len(tensor.dims) == 3 and tensor.name.endswith("weight"):
            fp16 = onnx.numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(onnx.numpy_helper.from_array(fp16, tensor.name))
            casts.append(onnx.helper.make_node("Cast", [tensor.name], [f"{tensor.name}.float"], to=FLOAT))
    wide = {cast.input[0]: cast.output[0] for cast in casts}
    for node in model.graph.node:
        node.input[:] = [wide.get(name, name) for name in node.input]
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, path)
    return path


def test_int8_bytes_are_cut_not_copied_twice(tmp_path: Path, rng: np.random.Generator) -> None:
    source = ffn(tmp_path / "a.onnx", rng, True, "gelu")
    lowered = lower_for_cpu(source, tmp_path / "b.onnx")
    before = {i.name: onnx.numpy_helper.to_array(i) for i in onnx.load(source).graph.initializer}
    after = {i.name: onnx.numpy_helper.to_array(i) for i in onnx.load(lowered.path).graph.initializer}
    for name, parts in lowered.parts.items():
        assert np.array_equal(np.stack([after[part] for part in parts]), before[name])
        assert name not in after


def test_int8_gemms_become_one_node_with_the_same_weights(tmp_path: Path, rng: np.random.Generator) -> None:
    tokens, width, _ = FFN_SHAPE
    source = ffn(tmp_path / "a.onnx", rng, True, "swiglu")
    lowered = lower_for_cpu(source, tmp_path / "b.onnx", "matmul-nbits")
    assert lowered.fused == {"up.weight", "gate.weight", "down.weight", "dense.weight"}
    ops = _ops(lowered.path)
    assert ops["MatMulNBits"] == 3 * tokens + 1
    assert "DequantizeLinear" not in ops
    assert ops["Add"] == 1  # the residual: every bias went into its GEMM
    exact = onnx.load(lowered.path)
    for node in exact.graph.node:
        for attribute in node.attribute:
            if attribute.name == "accuracy_level":
                attribute.i = 1  # FP32 arithmetic on the same packed weights: layout and scales must be exact
    onnx.save(exact, tmp_path / "exact.onnx")
    for rows in ROWS:
        x = rng.standard_normal((rows, tokens, width)).astype(np.float32)
        want = reference(source, {"x": x})["click"]
        np.testing.assert_allclose(reference(tmp_path / "exact.onnx", {"x": x})["click"], want, rtol=0, atol=2e-5)
        # int8 activations: relative error of a row about 1/254 per GEMM; three GEMMs deep, logits of size 1..5.
        got = reference(lowered.path, {"x": x})["click"]
        assert 0 < np.abs(got - want).max() < 0.2


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 300), st.integers(1, 9), st.sampled_from([16, 32, 256]))
def test_packed_blocks_hold_every_weight(k: int, n: int, block: int) -> None:
    q = np.random.default_rng().integers(-128, 128, (k, n), dtype=np.int8)
    packed = pack_blocks(q, block)
    assert packed.shape == (n, -(-k // block), block)
    flat = packed.reshape(n, -1).astype(np.int16) - 128
    assert np.array_equal(flat[:, :k].T, q)
    assert not flat[:, k:].any()


def test_block_size_is_the_largest_that_divides() -> None:
    assert [block_size(k) for k in (768, 384, 192, 96, 48, 50)] == [256, 128, 64, 32, 16, 32]


@pytest.mark.parametrize("mode", ["keep", "matmul-nbits"])
def test_item_side_with_state_and_int8_table(tmp_path: Path, rng: np.random.Generator, mode: str) -> None:
    source = item(tmp_path / "a.onnx", rng, True)
    lowered = lower_for_cpu(source, tmp_path / "b.onnx", mode)  # type: ignore[arg-type]  # parametrized Literal
    ops = _ops(lowered.path)
    assert "Split" not in ops  # cancelled against the Concat that made the tokens
    assert lowered.gathered == {"table"}
    for rows in ROWS:
        feeds = {
            "ids": rng.integers(0, 50, rows),
            "user_index": rng.integers(0, 3, rows),
            "state": rng.standard_normal((3, 16)).astype(np.float32),
        }
        want, got = reference(source, feeds)["click"], reference(lowered.path, feeds)["click"]
        if mode == "keep":
            np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)
        else:
            assert np.abs(got - want).max() < 0.02


def test_a_value_used_stacked_and_per_token(tmp_path: Path, rng: np.random.Generator) -> None:
    t, k, n = 3, 5, 7
    g = Graph(rng, False)
    h = g.add("MatMul", "x", g.weight("w", t, k, n), out="hidden")
    g.add("ReduceSum", h, g.const("axes", np.array([0])), keepdims=0, out="total")
    g.add("MatMul", g.add("Tanh", h), g.weight("w2", t, n, 2), out="y")
    scaled = g.add("Mul", h, g.const("half", np.array([[[0.5]]], dtype=np.float32)))
    g.add("Div", scaled, g.add("Exp", h), out="z")
    outputs = {"hidden": [t, "m", n], "total": ["m", n], "y": [t, "m", 2], "z": [t, "m", n]}
    source = g.save(tmp_path / "a.onnx", {"x": (FLOAT, [t, "m", k])}, outputs)
    lowered = lower_for_cpu(source, tmp_path / "b.onnx")
    assert _ops(lowered.path)["MatMul"] == 2 * t
    for rows in ROWS:
        feeds = {"x": rng.standard_normal((t, rows, k)).astype(np.float32)}
        want, got = reference(source, feeds), reference(lowered.path, feeds)
        assert list(got) == list(outputs)
        for name in outputs:
            np.testing.assert_allclose(got[name], want[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [("m", 5), (1, "m", 5)])
def test_rows_shared_by_all_tokens(tmp_path: Path, rng: np.random.Generator, shape: tuple[str | int, ...]) -> None:
    g = Graph(rng, False)
    g.add("MatMul", "x", g.weight("w", 3, 5, 7), out="y")
    source = g.save(tmp_path / "a.onnx", {"x": (FLOAT, list(shape))}, {"y": [3, "m", 7]})
    lowered = lower_for_cpu(source, tmp_path / "b.onnx")
    assert _ops(lowered.path)["MatMul"] == 3
    feeds = {"x": rng.standard_normal([4 if d == "m" else d for d in shape]).astype(np.float32)}
    np.testing.assert_allclose(reference(lowered.path, feeds)["y"], reference(source, feeds)["y"], atol=1e-5)


def test_operands_that_cannot_be_cut_are_left_whole(tmp_path: Path, rng: np.random.Generator) -> None:
    g = Graph(rng, False)
    h = g.add("MatMul", "x", g.weight("w", 2, 5, 7))
    g.add("Add", h, "other", out="y")  # [2, m, 7], not known per token
    inputs = {"x": (FLOAT, [2, "m", 5]), "other": (FLOAT, [2, "m", 7])}
    source = g.save(tmp_path / "a.onnx", inputs, {"y": [2, "m", 7]})  # type: ignore[arg-type]  # invariant dict
    lowered = lower_for_cpu(source, tmp_path / "b.onnx")
    feeds = {
        "x": rng.standard_normal((2, 4, 5)).astype(np.float32),
        "other": rng.standard_normal((2, 4, 7)).astype(np.float32),
    }
    np.testing.assert_allclose(reference(lowered.path, feeds)["y"], reference(source, feeds)["y"], atol=1e-5)


def test_missing_and_broken_files_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UgsepError, match="does not exist"):
        lower_for_cpu(tmp_path / "none.onnx", tmp_path / "b.onnx")
    (tmp_path / "a.onnx").write_bytes(b"\xff" * 64)
    with pytest.raises(UgsepError, match="not a readable ONNX file") as error:
        lower_for_cpu(tmp_path / "a.onnx", tmp_path / "b.onnx")
    assert "\n" not in str(error.value)


def test_shapes_that_contradict_each_other_are_one_line(
    tmp_path: Path, rng: np.random.Generator, capfd: pytest.CaptureFixture[str]
) -> None:
    source = ffn(tmp_path / "full.onnx", rng, False, "gelu")
    model = onnx.load(source)
    axis = onnx.numpy_helper.from_array(np.array([4], np.int64), "no_such_axis")
    model.graph.initializer.append(axis)
    model.graph.node.append(onnx.helper.make_node("ReduceMean", ["x", "no_such_axis"], ["mean"], name="node_mean"))
    onnx.save(model, source)
    with pytest.raises(UgsepError, match=r"full.onnx' is not valid ONNX \(.*axis must be in.*; export"):
        lower_for_cpu(source, tmp_path / "lowered.onnx")
    assert capfd.readouterr() == ("", ""), "no traceback of the library's log"


def test_small_weights_can_stay_stacked(tmp_path: Path, rng: np.random.Generator) -> None:
    tokens, width, hidden = FFN_SHAPE
    source = ffn(tmp_path / "a.onnx", rng, True, "swiglu")
    at, above = (
        lower_for_cpu(source, tmp_path / f"{limit}.onnx", min_token_elements=limit)
        for limit in (width * hidden, width * hidden + 1)
    )
    assert set(at.parts) == {"up.weight", "gate.weight", "down.weight"}
    assert above.parts == {}
    x = rng.standard_normal((2, tokens, width)).astype(np.float32)
    assert np.array_equal(reference(above.path, {"x": x})["click"], reference(source, {"x": x})["click"])


@pytest.mark.slow
def test_a_graph_beyond_two_gigabytes(tmp_path: Path) -> None:
    tokens, k, n = 3, 16384, 12032  # 2.4 GB of FP32, as a sparse file
    data = tmp_path / "a.onnx.data"
    with data.open("wb") as stream:
        stream.truncate(tokens * k * n * 4)
        stream.seek(-4, 2)
        stream.write(np.float32(7).tobytes())
    w = onnx.TensorProto(name="w", data_type=FLOAT, dims=[tokens, k, n], data_location=onnx.TensorProto.EXTERNAL)
    for key, value in (("location", data.name), ("offset", "0"), ("length", str(data.stat().st_size))):
        w.external_data.add(key=key, value=value)
    rows = onnx.helper.make_tensor_value_info("x", FLOAT, [tokens, "m", k])
    out = onnx.helper.make_tensor_value_info("y", FLOAT, [tokens, "m", n])
    graph = onnx.helper.make_graph([onnx.helper.make_node("MatMul", ["x", "w"], ["y"])], "large", [rows], [out], [w])
    opset = [onnx.helper.make_opsetid("", 21)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=10), tmp_path / "a.onnx")
    lowered = lower_for_cpu(tmp_path / "a.onnx", tmp_path / "b.onnx")
    assert lowered.parts == {"w": ("w[0]", "w[1]", "w[2]")}
    assert lowered.path.stat().st_size < 1 << 20
    (last,) = (t for t in onnx.load(lowered.path, load_external_data=False).graph.initializer if t.name == "w[2]")
    place = {entry.key: entry.value for entry in last.external_data}
    part = np.memmap(tmp_path / place["location"], np.float32, "r", int(place["offset"]), (k, n))
    assert part[-1, -1] == 7
    assert not part[-1, :-1].any()


def test_behind_the_last_token_gemm_nodes_are_not_repeated_per_token(tmp_path: Path) -> None:
    rng = np.random.default_rng()
    g = Graph(rng, False)
    tokens, width, layers = 3, 8, 24  # deep: looking where each value leads must not follow every path anew
    x = "x"
    for i in range(layers):
        y = g.add("MatMul", x, g.weight(f"w{i}", tokens, width, width))
        y = g.add("Add", g.add("Add", y, g.bias(f"b{i}", tokens, 1, width)), x)
        mean = g.add("ReduceMean", g.add("Mul", y, y), g.const("last", np.array([-1])), keepdims=1)
        x = g.add("Div", y, g.add("Sqrt", g.add("Add", mean, g.const("eps", np.float32(1e-6)))))
    for _ in range(40):  # a ladder of sums, with two ways at each rung
        x = g.add("Add", x, g.add("Neg", x))
        x = g.add("Add", x, g.const("one", np.float32(1)))
    g.add("MatMul", x, g.weight("last.weight", tokens, width, width), out="y")
    float_type = onnx.TensorProto.FLOAT
    shape = [tokens, "rows", width]
    source = g.save(tmp_path / "a.onnx", {"x": (float_type, shape)}, {"y": shape})
    lowered = lower_for_cpu(source, tmp_path / "b.onnx").path
    operators = [node.op_type for node in onnx.load(lowered).graph.node]
    assert operators.count("MatMul") == tokens * (layers + 1)
    assert operators.count("Add") == layers * (tokens + 2) + 80, "biases per token; residuals, norms and sums whole"
    assert operators.count("Mul") == operators.count("Div") == operators.count("Sqrt") == layers
    x_value = rng.standard_normal((tokens, 5, width)).astype(np.float32)
    want, got = (reference(file, {"x": x_value})["y"] for file in (source, lowered))
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)
