from pathlib import Path

import numpy as np
import onnx
import pytest

from export.lowering import PLUGIN_NAMESPACE, PLUGIN_OP, lower_for_tensorrt
from graphs.base.errors import UgsepError
from tests.export.lowering_graphs import FFN_SHAPE, Graph, ffn, item, reference

TOKENS, WIDTH, HIDDEN = FFN_SHAPE


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng()


@pytest.mark.parametrize("weights", ["int8", "folded"])
@pytest.mark.parametrize("kind", ["gelu", "swiglu"])
def test_scores_are_equal(tmp_path: Path, rng: np.random.Generator, weights: str, kind: str) -> None:
    source = ffn(tmp_path / "a.onnx", rng, True, kind)
    lowered = lower_for_tensorrt(source, tmp_path / "b.onnx", weights)  # type: ignore[arg-type]  # parametrized Literal
    for rows in (1, 2, 257):
        x = rng.standard_normal((rows, TOKENS, WIDTH)).astype(np.float32)
        want, got = reference(source, {"x": x})["click"], reference(lowered.path, {"x": x})["click"]
        # The same products in the runtime's order: K <= 72 terms of size ~1 round to 72 * 2^-24, twice through.
        np.testing.assert_allclose(got, want, rtol=0, atol=2e-5)


def test_siblings_are_merged_and_transposes_kept_apart(tmp_path: Path, rng: np.random.Generator) -> None:
    lowered = lower_for_tensorrt(ffn(tmp_path / "a.onnx", rng, True, "swiglu"), tmp_path / "b.onnx")
    assert set(lowered.parts) == {"gate.weight", "up.weight"}
    ((name,),) = set(lowered.parts.values())
    model = onnx.load(lowered.path)
    shapes = {i.name: tuple(i.dims) for i in model.graph.initializer}
    assert shapes[name] == (TOKENS, WIDTH, 2 * HIDDEN)
    nodes = {node.name: node for node in model.graph.node}
    assert {f"int8:{name}", f"gemm:{name}", "int8:down.weight", "gemm:down.weight", "gemm:dense.weight"} <= set(nodes)
    made = {out: node for node in model.graph.node for out in node.output}
    barrier = made[nodes[f"gemm:{name}"].input[0]]
    assert (barrier.op_type, made[barrier.input[0]].op_type) == ("Add", "Transpose")
    assert made[nodes["gemm:down.weight"].input[0]].op_type == "Mul"


def test_two_dimensional_siblings_of_unequal_width(tmp_path: Path, rng: np.random.Generator) -> None:
    g = Graph(rng, True)
    outputs = {}
    for name, width in (("q", 5), ("k", 9), ("v", 2)):
        g.add("MatMul", "x", g.weight(f"{name}.weight", 16, width), out=name)
        outputs[name] = ["m", width]
    source = g.save(tmp_path / "a.onnx", {"x": (onnx.TensorProto.FLOAT, ["m", 16])}, outputs)
    lowered = lower_for_tensorrt(source, tmp_path / "b.onnx")
    assert len(set(lowered.parts.values())) == 1
    feeds = {"x": rng.standard_normal((7, 16)).astype(np.float32)}
    want, got = reference(source, feeds), reference(lowered.path, feeds)
    assert list(got) == ["q", "k", "v"]
    for name in outputs:
        np.testing.assert_allclose(got[name], want[name], rtol=0, atol=1e-5)


def test_an_fp32_graph_becomes_fp16_typed(tmp_path: Path, rng: np.random.Generator) -> None:
    source = item(tmp_path / "a.onnx", rng, False)
    lowered = lower_for_tensorrt(source, tmp_path / "b.onnx", "fp16")
    model = onnx.load(lowered.path)
    kinds = {t.name: t.data_type for t in model.graph.initializer}
    assert onnx.TensorProto.FLOAT not in kinds.values()
    assert kinds["mix.weight"] == onnx.TensorProto.FLOAT16
    feeds = {
        "ids": rng.integers(0, 50, 9),
        "user_index": rng.integers(0, 2, 9),
        "state": rng.standard_normal((2, 16)).astype(np.float32),
    }
    want = reference(source, feeds)["click"]
    got = reference(lowered.path, feeds | {"state": feeds["state"].astype(np.float16)})["click"]
    # Sigmoid of a 16-term sum in FP16 (2^-11 relative), averaged over 40 values in [0, 1].
    np.testing.assert_allclose(got, want, rtol=0, atol=4e-3)


def test_values_beyond_fp16_are_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    g = Graph(rng, False)
    g.add("MatMul", "x", g.const("w", np.full((3, 2), 1e5, np.float32)), out="y")
    source = g.save(tmp_path / "a.onnx", {"x": (onnx.TensorProto.FLOAT, ["m", 3])}, {"y": ["m", 2]})
    with pytest.raises(UgsepError, match="'w' has values beyond FP16"):
        lower_for_tensorrt(source, tmp_path / "b.onnx", "fp16")


def test_small_constant_nodes_are_typed_too(tmp_path: Path, rng: np.random.Generator) -> None:
    g = Graph(rng, False)
    epsilon = g.add("Constant", value=onnx.numpy_helper.from_array(np.float32(0.25)))
    g.add("Add", g.add("MatMul", "x", g.weight("w", 3, 2)), epsilon, out="y")
    source = g.save(tmp_path / "a.onnx", {"x": (onnx.TensorProto.FLOAT, ["m", 3])}, {"y": ["m", 2]})
    lowered = lower_for_tensorrt(source, tmp_path / "b.onnx", "fp16")
    onnx.checker.check_model(onnx.load(lowered.path), full_check=True)
    feeds = {"x": np.ones((4, 3), np.float32)}
    got = reference(lowered.path, {"x": feeds["x"].astype(np.float16)})["y"]
    np.testing.assert_allclose(got, reference(source, feeds)["y"], rtol=0, atol=1e-2)  # FP16, values of size 1


def define_plugin(path: Path) -> Path:
    """Give the plugin's operator a body that any runtime knows: cast, multiply, scale."""
    model = onnx.load(path)
    nodes = [
        onnx.helper.make_node("Cast", ["q"], ["floats"], to=onnx.TensorProto.FLOAT),
        onnx.helper.make_node("MatMul", ["x", "floats"], ["sums"]),
        onnx.helper.make_node("Mul", ["sums", "s"], ["y"]),
    ]
    for node in model.graph.node:
        if node.op_type == PLUGIN_OP:
            del node.attribute[:]
    opsets = [onnx.helper.make_opsetid("", 21)]
    model.functions.append(
        onnx.helper.make_function(PLUGIN_NAMESPACE, PLUGIN_OP, ["x", "q", "s"], ["y"], nodes, opsets)
    )
    onnx.save(model, path.with_name("defined.onnx"))
    return path.with_name("defined.onnx")


@pytest.mark.parametrize("plugin", [{"gate.weight", "dense.weight"}, {"down.weight"}])
def test_weights_handed_to_the_plugin(tmp_path: Path, rng: np.random.Generator, plugin: set[str]) -> None:
    source = ffn(tmp_path / "a.onnx", rng, True, "swiglu")
    lowered = lower_for_tensorrt(source, tmp_path / "b.onnx", "int8", frozenset(plugin))
    model = onnx.load(lowered.path)
    made = {n.name: n for n in model.graph.node if n.op_type == PLUGIN_OP}
    held = {lowered.parts.get(name, (name,))[0] for name in plugin}
    assert set(made) == {f"gemm:{name}" for name in held}
    constants = {t.name: t for t in model.graph.initializer}
    for node in made.values():
        assert {a.name: a.s.decode() for a in node.attribute} == {
            "plugin_namespace": PLUGIN_NAMESPACE,
            "plugin_version": "1",
        }
        assert constants[node.input[1]].data_type == onnx.TensorProto.INT8
        assert constants[node.input[2]].data_type == onnx.TensorProto.FLOAT
    dequantized = {n.input[0] for n in model.graph.node if n.op_type == "DequantizeLinear"}
    assert not dequantized & held
    assert dequantized, "the other weights stay in the canonical form"
    for rows in (1, 2, 33):
        x = rng.standard_normal((rows, TOKENS, WIDTH)).astype(np.float32)
        want, got = reference(source, {"x": x})["click"], reference(define_plugin(lowered.path), {"x": x})["click"]
        # Scaled after the sum instead of before: one more rounding of sums of up to 72 terms of size one.
        np.testing.assert_allclose(got, want, rtol=0, atol=3e-5)
