"""Graph edits on small graphs: the FP16-typed view, and the files that are written."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphs.base.errors import UgsepError
from quant.graph.files import staged, write_graph
from quant.graph.fp16_view import to_fp16_view
from quant.graph.gemms import graph_of, load_graph, read_tensor, tensor_of
from tests.quant.graph_fixtures import model_of, run

F, H, I64 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT64
value = helper.make_tensor_value_info
node = helper.make_node


def fp16_view(model, tmp_path, keep=()):
    fp16 = graph_of(onnx.ModelProto.FromString(model.SerializeToString()))
    write_graph(fp16, tmp_path / "fp16.onnx", to_fp16_view(fp16, keep, "'fp16.onnx'"))
    onnx.checker.check_model(str(tmp_path / "fp16.onnx"), full_check=True)
    return onnx.load(tmp_path / "fp16.onnx")


def rms_norm(width: int) -> onnx.ModelProto:
    nodes = [
        node("Pow", ["x", "two"], ["squared"]),
        node("ReduceMean", ["squared", "axis"], ["mean"]),
        node("Constant", [], ["eps"], value=numpy_helper.from_array(np.float32(1e-12))),
        node("Add", ["mean", "eps"], ["safe"]),
        node("Sqrt", ["safe"], ["rms"]),
        node("Div", ["x", "rms"], ["normed"]),
        node("Mul", ["normed", "two"], ["y"]),
    ]
    constants = {"two": np.float32(2), "axis": np.array([-1])}
    return model_of(nodes, [value("x", F, ["n", width])], [value("y", F, ["n", width])], constants)


def test_a_norm_beyond_the_fp16_range_is_kept_in_fp32(tmp_path) -> None:
    model = rms_norm(9)
    x = np.random.default_rng().uniform(1000, 3000, (5, 9)).astype(np.float32)  # squares exceed 65504
    expected = run(model, x=x)[0]
    kept = fp16_view(model, tmp_path, ("Pow", "ReduceMean", "Sqrt"))
    fp16 = x.astype(np.float16)
    # inputs, quotient and product are rounded to 2^-11 each
    np.testing.assert_allclose(run(kept, x=fp16)[0].astype(np.float32), expected, rtol=4 * 2**-11)
    plain = fp16_view(model, tmp_path)
    assert not any(n.op_type == "Cast" for n in plain.graph.node)
    types = {t.name: t.data_type for t in kept.graph.initializer}
    assert (types["two"], types["two.fp32"], types["eps"]) == (H, F, F)  # shared, its copy, and only FP32
    adds = [n for n in kept.graph.node if n.op_type == "Add"]
    assert list(adds[0].input) == ["mean.fp32", "eps"]  # the epsilon joins the region between two kept operators


def test_activations_only_matmul_can_be_kept_by_name(tmp_path) -> None:
    nodes = [
        node("Transpose", ["x"], ["xt"], perm=[1, 0]),
        node("MatMul", ["x", "xt"], ["gram"]),
        node("MatMul", ["gram", "w"], ["y"]),
    ]
    w = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    model = model_of(nodes, [value("x", F, [4, 6])], [value("y", F, [4, 3])], {"w": w})
    fp16 = fp16_view(model, tmp_path, ("MatMul:activations",))
    matmuls = [n for n in fp16.graph.node if n.op_type == "MatMul"]
    assert list(matmuls[0].input) == ["x.fp32", "xt.fp32"]
    assert list(matmuls[1].input) == ["gram", "w"]


def test_integer_work_casts_and_outputs_of_the_fp16_view(tmp_path) -> None:
    nodes = [
        node("Cast", ["ids"], ["f"], to=F),
        node("ConstantOfShape", ["shape"], ["half"], value=numpy_helper.from_array(np.array([0.5], np.float32))),
        node("Add", ["f", "half"], ["sum"]),
        node("Sqrt", ["sum"], ["y"]),
        node("Add", ["ids", "one"], ["next"]),
    ]
    model = model_of(
        nodes,
        [value("ids", I64, [3])],
        [value("y", F, [3]), value("next", I64, [3])],
        {"shape": np.array([3]), "one": np.array(1)},
    )
    fp16 = fp16_view(model, tmp_path, ("Sqrt",))
    y, following = run(fp16, ids=np.array([1, 5, 7]))
    assert (y.dtype, following.tolist()) == (np.float16, [2, 6, 8])
    np.testing.assert_allclose(y, np.sqrt(np.array([1.5, 5.5, 7.5])), rtol=2**-10)


def test_single_constants_stay_finite_and_nonzero_but_weights_must_fit(tmp_path) -> None:
    nodes = [node("Add", ["x", "mask"], ["a"]), node("Mul", ["a", "tiny"], ["b"]), node("Mul", ["b", "w"], ["y"])]
    constants = {"mask": np.float32(-3e38), "tiny": np.float32(1e-30), "w": np.array([1, 2], np.float32)}
    inputs, outputs = [value("x", F, [2])], [value("y", F, [2])]
    held = {
        t.name: numpy_helper.to_array(t)
        for t in fp16_view(model_of(nodes, inputs, outputs, constants), tmp_path).graph.initializer
    }
    assert held["mask"] == -65504
    assert held["tiny"] == 2.0**-24
    constants["w"] = np.array([1, 1e6], np.float32)
    with pytest.raises(UgsepError, match=r"'w' exceeds the FP16 range"):
        fp16_view(model_of(nodes, inputs, outputs, constants), tmp_path)


def test_control_flow_is_refused() -> None:
    branch = helper.make_graph([node("Identity", ["x"], ["z"])], "b", [], [value("z", F, [1])])
    nodes = [node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)]
    model = model_of(nodes, [value("x", F, [1]), value("c", TensorProto.BOOL, [])], [value("y", F, [1])], {})
    with pytest.raises(UgsepError, match=r"'item.onnx' has control flow"):
        to_fp16_view(graph_of(model), (), "'item.onnx'")


def relu_of_floats() -> onnx.ModelProto:
    nodes = [node("Cast", ["ids"], ["f"], to=F), node("Relu", ["f"], ["g"]), node("Neg", ["g"], ["y"])]
    return model_of(nodes, [value("ids", I64, [3])], [value("y", F, [3])], {})


@pytest.mark.parametrize(("kind", "shape"), [(I64, [3]), (F, [4]), (F, [3, 1])])
def test_a_constant_that_is_declared_otherwise_names_the_file(kind: int, shape: list[int]) -> None:
    model = relu_of_floats()
    model.graph.initializer.append(numpy_helper.from_array(np.ones(3, np.float32), "w"))
    model.graph.value_info.append(value("w", kind, shape))
    model.graph.node[2].CopyFrom(node("Add", ["g", "w"], ["y"]))
    with pytest.raises(UgsepError, match=r"^'item.onnx': its types cannot be inferred .*; export the model again"):
        to_fp16_view(graph_of(model), (), "'item.onnx'")


def test_a_type_that_nothing_declares_names_the_file() -> None:
    model = relu_of_floats()
    model.opset_import.add(domain="own", version=1)
    model.graph.node[1].domain = "own"
    with pytest.raises(UgsepError, match=r"^'item.onnx': the type of 'g' \(Relu\) cannot be inferred"):
        to_fp16_view(graph_of(model), (), "'item.onnx'")


def test_attributes_of_another_operator_set_may_have_any_type(tmp_path) -> None:
    """Only ONNX defines what ``to`` and ``value`` are."""
    model = relu_of_floats()
    model.opset_import.add(domain="own", version=1)
    model.graph.node[1].CopyFrom(node("Own", ["f"], ["g"], domain="own", to=1.0, value="text"))
    model.graph.value_info.append(value("g", F, [3]))
    fp16 = graph_of(model)
    to_fp16_view(fp16, (), "'item.onnx'")
    kept = next(n for n in fp16.graph if n.op_type == "Own")
    assert (kept.attributes["to"].value, kept.attributes["value"].value) == (1.0, "text")


def test_a_graph_is_written_back_as_it_was_read(graphs, tmp_path) -> None:
    """Types that the file does not declare are not declared either; onnx_ir sorts the metadata."""
    for path in graphs:
        write_graph(load_graph(path), tmp_path / "back.onnx")
        before, after = (onnx.load(p, load_external_data=False) for p in (path, tmp_path / "back.onnx"))
        assert before.graph == after.graph
        assert {p.key: p.value for p in before.metadata_props} == {p.key: p.value for p in after.metadata_props}


def test_staged_files_replace_all_or_none(tmp_path) -> None:
    (tmp_path / "a").write_text("old")

    def fail() -> None:
        with staged(tmp_path) as stage:
            (stage / "a").write_text("new")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "old"
    with staged(tmp_path) as stage:
        (stage / "a").write_text("new")
    assert (tmp_path / "a").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


@pytest.mark.slow
def test_a_graph_over_two_gigabytes(tmp_path) -> None:
    from quant.schemes.schemes import Absmax
    from quant.weights import quantize_side

    shape, count = (40, 1024, 2048), 7  # 2.3 GB of float32, a file of holes but for a corner of each weight
    size = int(np.prod(shape)) * 4
    nodes, tensors, corner = [], [], np.arange(8, dtype=np.float32) - 3
    with (tmp_path / "item.onnx.data").open("wb") as file:
        for i in range(count):
            file.seek(i * size)
            file.write(corner.tobytes())
            tensor = TensorProto(name=f"w{i}", data_type=F, dims=shape, data_location=TensorProto.EXTERNAL)
            for key, entry in (("location", "item.onnx.data"), ("offset", i * size), ("length", size)):
                tensor.external_data.add(key=key, value=str(entry))
            tensors.append(tensor)
            nodes.append(node("MatMul", ["x", f"w{i}"], [f"y{i}"]))
        file.truncate(count * size)
    assert count * size > 2**31
    outputs = [value(f"y{i}", F, [40, "n", 2048]) for i in range(count)]
    graph = helper.make_graph(nodes, "item", [value("x", F, [40, "n", 1024])], outputs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    (tmp_path / "item.onnx").write_bytes(model.SerializeToString())
    table = quantize_side(tmp_path / "item.onnx", tmp_path / "out", scheme=Absmax())
    assert len(table.rows) == count
    blob = np.memmap(tmp_path / "out" / "item.int8.data", np.int8, "r")
    assert blob.size == count * size // 4  # 80 MiB each: aligned without gaps
    held = load_graph(tmp_path / "out" / "item.w8a16.onnx").graph.initializers["w6.scale"]
    scale = read_tensor(tensor_of(held))[0, 0, :8].astype(np.float32)
    restored = blob[6 * (size // 4) :][:8] * scale
    np.testing.assert_allclose(restored, corner, atol=5 / 254)
