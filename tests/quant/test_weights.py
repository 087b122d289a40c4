import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from graphs.base.errors import UgsepError
from quant.calibration.calibrate import calibrate
from quant.graph.gemms import load_graph, weights_of
from quant.inspect import inspect_graph
from quant.policy import Policy, Rule
from quant.requests.readers import read_requests
from quant.requests.spec import request_spec
from quant.schemes import numerics
from quant.schemes.schemes import Absmax, Awq, Gptq, Mse, scheme_from
from quant.weight_table import table_of
from quant.weights import quantize_side
from tests.quant.graph_fixtures import constants


@pytest.fixture
def requests(graphs, make_columns, make_shards, tmp_path):
    make_shards(tmp_path / "data", make_columns(40), [])
    return list(read_requests([tmp_path / "data"], request_spec(*graphs)))


@pytest.fixture
def calibration(graphs, requests):
    return calibrate(*graphs, requests, gram=True)


def session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")  # exact W8 numerics
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def scores(user: Path, item: Path, requests, dtype=np.float32) -> np.ndarray:
    users, items = session(user), session(item)

    def typed(values):
        return {n: a.astype(dtype) if a.dtype == np.float32 else a for n, a in values.items()}

    found = []
    for r in requests:
        state = users.run(None, typed(r.user))[0]
        assert state.dtype == dtype
        index = np.zeros(r.candidates, np.int64)
        found.append(items.run(None, {**typed(r.items), "state": state, "user_index": index})[0])
    return np.concatenate(found).astype(np.float64)


def write_dequantized(source: Path, quantized: Path, out: Path) -> Path:
    """The float graph with every weight replaced by the quantized file's constants, dequantized in NumPy."""
    model, held = onnx.load(source), constants(quantized)
    replaced = 0
    for tensor in model.graph.initializer:
        values = held[tensor.name]
        if values.dtype == np.int64:
            continue
        if values.dtype == np.int8:
            scale = held[f"{tensor.name}.scale"].astype(np.float32)
            if tensor.name.endswith("table"):
                values = values * scale[:, None]
            else:
                # [N], [K/block, N] or [T, K/block, N]: each scale row is repeated over its rows of K
                rows = scale[None] if scale.ndim == 1 else scale
                values = values * np.repeat(rows, values.shape[-2] // rows.shape[-2], axis=-2)
            replaced += 1
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32).reshape(tensor.dims), tensor.name))
    assert replaced
    out.parent.mkdir(exist_ok=True)
    onnx.save(model, out)
    return out


SCHEMES = {
    "absmax": (Absmax(), Policy()),
    "mse tables": (Mse(), Policy(tables=True)),
    "gptq": (Gptq(), Policy()),
    "fp16 and fp32": (Mse(), Policy((Rule("ffn.up.*", "fp16"), Rule("item:item.in.*", "fp32")))),
}


@pytest.mark.parametrize("case", SCHEMES)
@pytest.mark.parametrize("threshold", [64, 1 << 20])
def test_both_views_compute_what_their_constants_say(make_graphs, requests, tmp_path, case, threshold) -> None:
    pair = make_graphs(tmp_path / "onnx", threshold=threshold)
    found = calibrate(*pair, requests, gram=True)
    scheme, policy = SCHEMES[case]
    out = tmp_path / "out"
    for path in pair:
        quantize_side(path, out, scheme=scheme, calibration=found, policy=policy)
    for view in ("w8a32", "w8a16"):
        for side in ("user", "item"):
            onnx.checker.check_model(str(out / f"{side}.{view}.onnx"), full_check=True)
            assert table_of(out / f"{side}.{view}.onnx") is not None
    plain = [write_dequantized(p, out / f"{p.stem}.w8a32.onnx", tmp_path / "plain" / p.name) for p in pair]
    expected = scores(*plain, requests)
    views = {v: [out / f"{side}.{v}.onnx" for side in ("user", "item")] for v in ("w8a32", "w8a16")}
    size = np.abs(expected).max()
    # the same float32 weights: only the order of additions may differ
    np.testing.assert_allclose(scores(*views["w8a32"], requests), expected, atol=2e-5 * size)
    # FP16 activations: 2^-11 per operation, about ten of them in a row
    np.testing.assert_allclose(scores(*views["w8a16"], requests, np.float16), expected, atol=0.02 * size)
    exact = scores(*pair, requests)
    assert numerics.sqnr_db(exact, expected) > 30  # 8 bits on Student-t weights of a tiny graph
    assert not np.array_equal(exact, expected)


def test_the_pattern_is_the_canonical_one(graphs, calibration, tmp_path) -> None:
    item = graphs[1]
    table = quantize_side(item, tmp_path, scheme=Mse(), calibration=calibration, policy=Policy(tables=True))
    assert set(table.files) == {"item.int8.data", "item.w8a16.onnx", "item.w8a32.onnx"}
    for view, scale_type in (("w8a32", TensorProto.FLOAT), ("w8a16", TensorProto.FLOAT16)):
        model = onnx.load(tmp_path / f"item.{view}.onnx", load_external_data=False)
        tensors = {t.name: t for t in model.graph.initializer}
        producers = {o: n for n in model.graph.node for o in n.output}
        properties = {p.key: p.value for p in model.metadata_props}
        assert properties["ugsep.precision"] == view
        assert properties["ugsep.side"] == "item"
        expected = {
            "item.in.weight": ({"axis": 1}, [30]),
            "ffn.up.weight": ({"axis": 1, "block_size": 10}, [3, 1, 14]),
            "ffn.down.weight": ({"axis": 1, "block_size": 14}, [3, 1, 10]),
            "item.table": ({"axis": 0}, [67]),
        }
        for name, (attributes, shape) in expected.items():
            assert tensors[name].data_type == TensorProto.INT8
            assert ExternalDataInfo(tensors[name]).location == "item.int8.data"
            scale = tensors[f"{name}.scale"]
            assert (scale.data_type, list(scale.dims)) == (scale_type, shape)
            reader = next(n for n in model.graph.node if f"{name}.dequantized" in n.input)
            assert reader.op_type == ("Gather" if name == "item.table" else "MatMul")
            node = producers[f"{name}.dequantized"]
            assert (node.op_type, list(node.input)) == ("DequantizeLinear", [name, f"{name}.scale"])
            assert {a.name: a.i for a in node.attribute} == attributes
        assert tensors["head.click.weight"].data_type == scale_type
        assert tensors["token_shape"].data_type == TensorProto.INT64
        types = {v.name: v.type.tensor_type.elem_type for v in (*model.graph.input, *model.graph.output)}
        assert types["item_dense"] == types["click"] == types["state"] == scale_type
        assert types["item_id"] == types["user_index"] == TensorProto.INT64
    ones, twos = (constants(tmp_path / f"item.{v}.onnx") for v in ("w8a32", "w8a16"))
    for name in ("ffn.up.weight.scale", "item.in.weight.scale", "item.table.scale"):
        np.testing.assert_array_equal(ones[name], twos[name].astype(np.float32))


def test_blocks_of_k(graphs, calibration, requests, tmp_path) -> None:
    policy = Policy((Rule("item.in.weight", "fp32"), Rule("user.in.weight", "fp32")), block=2)
    for path in graphs:
        quantize_side(path, tmp_path / "b", scheme=Absmax(), policy=policy)
    held = constants(tmp_path / "b" / "item.w8a32.onnx")
    assert held["ffn.up.weight.scale"].shape == (3, 5, 14)
    out = [tmp_path / "b" / f"{s}.w8a32.onnx" for s in ("user", "item")]
    plain = write_dequantized(graphs[1], out[1], tmp_path / "plain" / "item.onnx")
    np.testing.assert_allclose(scores(*out, requests), scores(out[0], plain, requests), rtol=1e-4, atol=1e-5)
    with pytest.raises(UgsepError, match=r"'item.in.weight' has K = 17, not a multiple of block 2"):
        quantize_side(graphs[1], tmp_path / "c", scheme=Absmax(), policy=Policy(block=2))


def test_blocks_of_k_in_two_dimensions(graphs, requests, tmp_path) -> None:
    policy = Policy((Rule("ffn.*", "fp32"), Rule("item.in.weight", "fp32")), block=3)
    for path in graphs:
        quantize_side(path, tmp_path / "b", scheme=Absmax(), policy=policy)
    held = constants(tmp_path / "b" / "user.w8a32.onnx")
    assert held["user.in.weight.scale"].shape == (3, 8)
    user = tmp_path / "b" / "user.w8a32.onnx"
    plain = write_dequantized(graphs[0], user, tmp_path / "plain" / "user.onnx")
    np.testing.assert_allclose(
        scores(user, graphs[1], requests), scores(plain, graphs[1], requests), rtol=1e-4, atol=1e-5
    )


def test_the_table_tells_what_became_of_each_weight(graphs, calibration, tmp_path) -> None:
    policy = Policy((Rule("ffn.up.*", "fp16", "asked for"),))
    table = quantize_side(graphs[1], tmp_path, scheme=Mse(), calibration=calibration, policy=policy)
    rows = {r.weight: r for r in table.rows}
    assert rows["item.in.weight"].bits == 8
    assert rows["item.in.weight"].quantized_bytes == 17 * 30 + 30 * 4
    assert rows["item.in.weight"].sqnr_db > 35
    assert rows["item.in.weight"].output_sqnr_db is not None
    assert (rows["ffn.up.weight"].bits, rows["ffn.up.weight"].reason_if_skipped) == (16, "asked for")
    assert rows["ffn.up.weight"].quantized_bytes == rows["ffn.up.weight"].fp32_bytes // 2
    assert "head.*" in rows["head.click.weight"].reason_if_skipped
    assert "embedding table" in rows["item.table"].reason_if_skipped
    assert table.samples_sha256 == calibration.samples_sha256
    stamped = table_of(tmp_path / "item.w8a16.onnx")
    assert stamped is not None
    assert stamped.rows == table.rows == inspect_graph(tmp_path / "item.w8a16.onnx")
    assert json.loads(json.dumps(table.to_json()))["fp32_bytes"] == table.fp32_bytes
    assert [r.weight for r in inspect_graph(graphs[1])] == [r.weight for r in table.rows]
    assert table_of(graphs[1]) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "ugsep.quant: not valid JSON"),
        ("[]", "ugsep.quant: expected a mapping of settings, got a list"),
        ('{"graph": 1}', "ugsep.quant: '(scheme|rows|samples_sha256)' is missing"),
        ('{"graph": "item", "scheme": "", "samples_sha256": "", "rows": [3]}', r"rows\[0\] is 3, not an object"),
        ({"bits": "8"}, r'rows\[0\].bits is "8", not an integer'),
        ({"bits": 7}, r"rows\[0\].bits is 7, not 8, 16 or 32"),
        ({"shape": [1, None]}, r"rows\[0\].shape\[1\] is null, not an integer"),
        ({"other": 1}, r"rows\[0\]: unknown setting 'other'"),
    ],
)
def test_a_malformed_table_names_file_and_field(graphs, text, message) -> None:
    model = onnx.load(graphs[1])
    if isinstance(text, dict):
        row = {**inspect_graph(graphs[1])[0].to_json(), **text}
        text = json.dumps({"graph": "item", "scheme": "", "samples_sha256": "", "rows": [row]})
    onnx.helper.set_model_props(model, {"ugsep.quant": text})
    onnx.save(model, graphs[1])
    with pytest.raises(UgsepError, match=f"'.*item.onnx': .*{message}"):
        inspect_graph(graphs[1])


def test_one_run_writes_the_bytes_of_the_next(graphs, calibration, tmp_path) -> None:
    for name in ("a", "b"):
        quantize_side(graphs[1], tmp_path / name, scheme=Gptq(), calibration=calibration)
    files = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert len(files) == 3
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_awq_folds_without_a_trace_in_float32(graphs, calibration, requests, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("quant.weights.corrected", lambda bias, shift: bias)  # the factors alone
    table = quantize_side(graphs[1], tmp_path, scheme=Awq(), calibration=calibration)
    notes = {r.weight: r.note for r in table.rows}
    assert notes["ffn.up.weight"] == notes["ffn.down.weight"] == ""
    assert notes["item.in.weight"] == "Concat before it takes no factor"
    before, after = constants(graphs[1]), constants(tmp_path / "item.w8a32.onnx")
    gain, bias = before["norm.gain"] / after["norm.gain"], before["ffn.up.bias"] / after["ffn.up.bias"]
    for factors in (gain, bias):
        assert (factors != 1).any()
        assert (np.log2(factors) % 1 == 0).all()
    # The same factors on the float graph, nothing rounded: its scores must not move by a bit.
    model = onnx.load(graphs[1])
    for tensor in model.graph.initializer:
        values = before[tensor.name]
        if values.dtype == np.int64:
            continue
        if tensor.name == "norm.gain":
            values = values / gain
        if tensor.name == "ffn.up.weight":
            values = values * gain[:, None] / bias
        if tensor.name == "ffn.up.bias":
            values = values / bias
        if tensor.name == "ffn.down.weight":
            values = values * bias.reshape(3, -1)[:, :, None]
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), tensor.name))
    onnx.save(model, tmp_path / "folded.onnx")
    np.testing.assert_array_equal(scores(graphs[0], tmp_path / "folded.onnx", requests), scores(*graphs, requests))


def test_calibrated_schemes_are_never_worse_than_absmax(graphs, calibration, tmp_path) -> None:
    def errors(scheme):
        quantize_side(graphs[1], tmp_path, scheme=scheme, calibration=calibration)
        held, plain = constants(tmp_path / "item.w8a32.onnx"), constants(graphs[1])
        found = {}
        for name in ("item.in.weight", "ffn.up.weight", "ffn.down.weight"):
            seen = calibration.item.of(name)
            if name == "ffn.up.weight" and not isinstance(scheme, Absmax):
                seen = seen.centered()  # its bias takes the mean of the error
            scale = held[f"{name}.scale"]
            difference = plain[name] - held[name] * (scale if scale.ndim == 3 else scale[None])
            found[name] = (
                np.einsum("...kn,...kl,...ln->...n", difference, seen.gram, difference),
                np.einsum("...kn,...k->...n", difference**2, seen.moments),
            )
        return found

    absmax, mse, gptq = (errors(s) for s in (Absmax(), Mse(), Gptq()))
    for name in absmax:
        # 1e-4: the choices are made on float32 sums
        assert (gptq[name][0] <= absmax[name][0] * (1 + 1e-4)).all()
        assert (mse[name][1] <= absmax[name][1] * (1 + 1e-4)).all()
        assert gptq[name][0].sum() < 0.9 * absmax[name][0].sum()


def test_what_cannot_be_quantized_says_why(tmp_path) -> None:
    w = numpy_helper.from_array(np.eye(4, dtype=np.float32), "shared")
    g = numpy_helper.from_array(np.ones((2, 2, 4, 4), np.float32), "four")
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("MatMul", ["x", "shared"], ["a"]),
        helper.make_node("Add", ["a", "shared"], ["b"]),
        helper.make_node("MatMul", ["b", "four"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "user",
        [value("x", TensorProto.FLOAT, [4, 4])],
        [value("y", TensorProto.FLOAT, [2, 2, 4, 4])],
        [w, g],
    )
    path = tmp_path / "user.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    refusals = {w.name: w.refusal for w in weights_of(load_graph(path))}
    assert refusals["shared"] == "also read by Add"
    assert "has 4 axes" in refusals["four"]
    table = quantize_side(path, tmp_path / "out", scheme=Absmax())
    assert [r.bits for r in table.rows] == [32, 32]
    assert table.files == ("user.w8a16.onnx", "user.w8a32.onnx")
    assert not any(uses_external_data(t) for t in onnx.load(tmp_path / "out" / "user.w8a32.onnx").graph.initializer)


@pytest.mark.parametrize(
    ("scheme", "message"),
    [(Mse(), "scheme 'mse' needs calibration"), (Gptq(), "scheme 'gptq' needs"), (Awq(), "scheme 'awq' needs")],
)
def test_schemes_that_need_calibration_say_so(graphs, tmp_path, scheme, message) -> None:
    with pytest.raises(UgsepError, match=message):
        quantize_side(graphs[0], tmp_path / "out", scheme=scheme)
    assert not (tmp_path / "out").exists()


def test_gptq_without_gram_matrices_says_so(graphs, requests, tmp_path) -> None:
    with pytest.raises(UgsepError, match="run quant calibrate --gram"):
        quantize_side(graphs[0], tmp_path / "out", scheme=Gptq(), calibration=calibrate(*graphs, requests))


def test_bad_input_is_refused_and_the_old_files_stay(graphs, calibration, make_graphs, tmp_path, monkeypatch) -> None:
    out = tmp_path / "out"
    quantize_side(graphs[1], out, scheme=Absmax())
    before = {p.name: p.read_bytes() for p in out.iterdir()}

    other = make_graphs(tmp_path / "other", seed=8)
    with pytest.raises(UgsepError, match="the calibration is of another graph"):
        quantize_side(other[1], out, scheme=Mse(), calibration=calibration)
    with pytest.raises(UgsepError, match=r"policy 'ffn.upp.weight' matches no weight, did you mean 'ffn.up.weight'"):
        quantize_side(graphs[1], out, scheme=Absmax(), policy=Policy((Rule("ffn.upp.weight", "int8"),)))
    with pytest.raises(UgsepError, match="does not exist"):
        quantize_side(tmp_path / "none.onnx", out, scheme=Absmax())

    model = onnx.load(graphs[1])
    tensor = next(t for t in model.graph.initializer if t.name == "ffn.down.weight")
    values = numpy_helper.to_array(tensor).copy()
    values[1, 2, 3] = np.nan
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(model, tmp_path / "other" / "item.onnx")
    with pytest.raises(UgsepError, match=r"weight 'ffn.down.weight' of 'item' holds NaN or Inf"):
        quantize_side(tmp_path / "other" / "item.onnx", out, scheme=Absmax())

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("quant.weights.append", full)
    with pytest.raises(UgsepError, match=r"cannot write to .*No space left on device"):
        quantize_side(graphs[1], out, scheme=Absmax())
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before


def test_an_output_folder_that_cannot_be_is_refused(graphs, tmp_path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UgsepError, match="give another output folder"):
        quantize_side(graphs[0], tmp_path / "file" / "out", scheme=Absmax())


@pytest.mark.parametrize("damage", ["truncated", "missing", "not onnx", "opset", "cycle"])
def test_damaged_graphs_are_refused(make_graphs, tmp_path, damage) -> None:
    _, item = make_graphs(tmp_path / "onnx", threshold=64)
    data = item.with_name("item.onnx.data")
    if damage == "truncated":
        data.write_bytes(data.read_bytes()[:-600])
    elif damage == "missing":
        data.unlink()
    elif damage == "not onnx":
        item.write_bytes(b"\xff" * 100)
    else:
        model = onnx.load(item, load_external_data=False)
        if damage == "opset":
            model.opset_import[0].version = 20
        else:
            next(n for n in model.graph.node if n.op_type == "Add").input[0] = model.graph.output[0].name
        item.write_bytes(model.SerializeToString())
    message = {
        "truncated": "its data, 1680 bytes|which is missing",
        "missing": "its data, 1680 bytes|which is missing",
        "not onnx": "is not a readable ONNX file",
        "opset": "has opset 20; int8 weights need opset 21",
        "cycle": "item.onnx': the node '.*' takes 'click', which nothing before it makes; do not use this file",
    }[damage]
    with pytest.raises(UgsepError, match=message):
        quantize_side(item, tmp_path / "out", scheme=Absmax())


def test_unknown_schemes_and_options_name_the_nearest() -> None:
    assert scheme_from("gptq", {"damping": 0.1}) == Gptq(damping=0.1)
    with pytest.raises(UgsepError, match="unknown scheme 'gtpq', did you mean 'gptq'"):
        scheme_from("gtpq")
    with pytest.raises(UgsepError, match="has no option 'dampin', did you mean 'damping'"):
        scheme_from("gptq", {"dampin": 1})
