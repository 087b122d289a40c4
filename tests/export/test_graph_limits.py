"""What a graph says of its operators and tensors is checked against what is there, before anything else reads it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from export.io import content_sha256, file_sha256, read_graph, read_model
from graphs.base.errors import UgsepError
from tests.engines.bundle.onnx_mutations import mutate

MUTANTS = 300


def sound(folder: Path) -> Path:
    """Write a graph with an inline and an external weight, and a nested graph with a constant."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    inline = numpy_helper.from_array(rng.standard_normal((3, 5)).astype(np.float32), "inline")
    outside = TensorProto(
        name="outside", data_type=TensorProto.FLOAT, dims=[5, 7], data_location=TensorProto.EXTERNAL
    )
    for key, value in (("location", "m.data"), ("offset", "8"), ("length", "140")):
        outside.external_data.add(key=key, value=value)
    (folder / "m.data").write_bytes(rng.bytes(8 + 140 + 4))
    bias = numpy_helper.from_array(rng.standard_normal(7).astype(np.float32), "bias")
    vector = helper.make_tensor_value_info("r", TensorProto.FLOAT, None)
    branch = helper.make_graph([helper.make_node("Constant", [], ["b"], value=bias),
                                helper.make_node("Add", ["q", "b"], ["r"])], "branch", [], [vector])  # fmt: skip
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "inline"], ["p"]),
            helper.make_node("MatMul", ["p", "outside"], ["q"]),
            helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch),
        ],
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3]),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 7])],
        [inline, outside],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, folder / "m.onnx")
    return folder / "m.onnx"


def entry(model: ModelProto, key: str, value: str) -> None:
    next(e for e in model.graph.initializer[1].external_data if e.key == key).value = value


def nested(model: ModelProto) -> TensorProto:
    return model.graph.node[2].attribute[0].g.node[0].attribute[0].t


def dims(tensor: Callable[[ModelProto], TensorProto], *sizes: int) -> Callable[[ModelProto], object]:
    return lambda model: tensor(model).dims.__setitem__(slice(None), sizes)


def first(model: ModelProto) -> TensorProto:
    return model.graph.initializer[0]


def second(model: ModelProto) -> TensorProto:
    return model.graph.initializer[1]


WRONG: dict[str, tuple[Callable[[ModelProto], object], str]] = {
    "a negative dimension": (dims(first, -3, 5), r"'inline' has the shape \[-3, 5\], out of range"),
    "2^62 elements": (dims(first, 2**62, 5), "'inline' has the shape .* more than 1099511627776 elements"),
    "2^62 times 0": (dims(first, 2**62, 0), "more than 1099511627776 elements"),
    "65 axes": (dims(first, *[1] * 65), "out of range"),
    "more elements than bytes": (dims(first, 5, 5), r"of shape \[5, 5\] has 60 bytes, not 100"),
    "fewer elements than bytes": (dims(first, 3, 4), r"of shape \[3, 4\] has 60 bytes, not 48"),
    "elements beyond the external data": (dims(second, 5, 8), "has 140 bytes of external data, not 160"),
    "an unknown type": (lambda m: setattr(first(m), "data_type", 99), "unknown type 99"),
    "no type": (lambda m: setattr(first(m), "data_type", 0), "unknown type 0"),
    "a wider type": (lambda m: setattr(first(m), "data_type", TensorProto.DOUBLE), "has 60 bytes, not 120"),
    "data twice": (lambda m: first(m).float_data.extend([0.0] * 15), "data twice, as raw_data and as float_data"),
    "data of another type": (lambda m: (first(m).ClearField("raw_data"), first(m).int64_data.extend([0] * 15)),
                             "has its data as int64_data, which its type does not use"),
    "no data": (lambda m: first(m).ClearField("raw_data"), "has 0 values, not 15"),
    "a path out": (lambda m: entry(m, "location", "../m.data"), "no path in the folder"),
    "an absolute path": (lambda m: entry(m, "location", "/etc/passwd"), "no path in the folder"),
    "the folder": (lambda m: entry(m, "location", "."), "no path in the folder"),
    "the memory of a process": (lambda m: entry(m, "location", "*/_ORT_MEM_ADDR_/*"), "which is missing"),
    "a missing file": (lambda m: entry(m, "location", "n.data"), "which is missing"),
    "an offset beyond the end": (lambda m: entry(m, "offset", "13"), "140 bytes from 13, is not inside 'm.data'"),
    "a negative offset": (lambda m: entry(m, "offset", "-8"), "the offset of its data is '-8', which is no count"),
    "an offset in words": (lambda m: entry(m, "offset", "0x8"), "which is no count"),
    "an offset beyond int64": (lambda m: entry(m, "offset", str(2**70)), "which is no count"),
    "another length": (lambda m: entry(m, "length", "139"), "has 139 bytes of external data, not 140"),
    "an entry twice": (lambda m: second(m).external_data.add(key="offset", value="0"), "given twice"),
    "external and inline": (lambda m: setattr(second(m), "raw_data", b"x" * 140), "has external data, and raw_data"),
    "a nested tensor": (lambda m: nested(m).dims.__setitem__(0, 2**40), "'bias' of shape .* has 28 bytes, not"),
    "an input of 2^62 rows": (lambda m: setattr(m.graph.input[0].type.tensor_type.shape.dim[0], "dim_value", 2**62),
                              "the value 'x' has the shape"),
    "a name twice": (lambda m: setattr(second(m), "name", "inline"), "'inline' is made twice|no name of its own"),
    "no name": (lambda m: setattr(first(m), "name", ""), "no name of its own"),
    "an input nobody makes": (lambda m: m.graph.node[1].input.__setitem__(0, "x\n\x1b[2J"), "which nothing before"),
    "an input nobody makes, nested": (lambda m: m.graph.node[2].attribute[0].g.node[1].input.__setitem__(0, "z"),
                                      "takes 'z', which nothing before it makes"),
    "an input made later": (lambda m: m.graph.node[0].input.__setitem__(0, "q"), "takes 'q', which nothing before"),
    "an input that a node makes itself": (lambda m: m.graph.node[1].input.__setitem__(0, "q"), "nothing before"),
    "an input made later, around": (lambda m: m.graph.node[2].attribute[0].g.node[1].input.__setitem__(0, "y"),
                                    "takes 'y', which nothing before it makes"),
    "an output nobody makes": (lambda m: setattr(m.graph.output[0], "name", "z"), "nothing makes the output 'z'"),
    "an opset nobody knows": (lambda m: setattr(m.opset_import[0], "version", 999),
                              rf"of ai\.onnx is 999, .* knows 1 to {onnx.defs.onnx_opset_version()}; do not use"),
    "an IR version nobody knows": (lambda m: setattr(m, "ir_version", 99),
                                   rf"its IR version is 99, and onnx \S+ knows 3 to {onnx.IR_VERSION}; do not use"),
    "an IR version without opsets": (lambda m: setattr(m, "ir_version", 2), "its IR version is 2, and"),
    "no opset": (lambda m: setattr(m.opset_import[0], "version", 0), r"its opset of ai\.onnx is 0, and"),
    "an opset of a function": (lambda m: m.functions.add(name="f").opset_import.add(version=99), "onnx is 99, and"),
    "another opset of ONNX": (lambda m: m.opset_import.add(domain="ai.onnx.ml", version=77), "of ai.onnx.ml is 77"),
    "an opset twice": (lambda m: m.opset_import.add(domain="ai.onnx", version=20), "'ai.onnx' is given twice"),
    "a stamp twice": (lambda m: [m.metadata_props.add(key="ugsep.side", value=v) for v in ("user", "item")],
                      "the metadata has 'ugsep.side' twice"),
    "graphs in graphs": (lambda m: deepen(m, 20), "nested more than 16 deep"),
}  # fmt: skip


def deepen(model: ModelProto, levels: int) -> None:
    for _ in range(levels):
        inner = onnx.GraphProto()
        inner.CopyFrom(model.graph)
        del model.graph.node[:]
        node = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=onnx.GraphProto())
        model.graph.node.append(node)


@pytest.mark.parametrize("case", sorted(WRONG))
def test_what_cannot_be_is_refused_by_every_reader(tmp_path: Path, case: str) -> None:
    change, says = WRONG[case]
    path = sound(tmp_path)
    model = onnx.load(path, load_external_data=False)
    change(model)
    path.write_bytes(model.SerializeToString())
    for read in (read_graph, read_model, file_sha256, content_sha256):
        with pytest.raises(UgsepError, match=says) as caught:
            read(path)
        assert str(caught.value).isprintable()


def test_a_sound_graph_is_read(tmp_path: Path) -> None:
    path = sound(tmp_path)
    weights = read_model(path).graph.initializers
    assert weights["outside"].const_value is not None
    stored = np.frombuffer((tmp_path / "m.data").read_bytes()[8:148], np.float32).reshape(5, 7)
    np.testing.assert_array_equal(weights["outside"].const_value.numpy(), stored)


@pytest.mark.parametrize(
    ("old", "new", "where"),
    [
        (b"ugsep.keep_float", b"ugsep.keep_fl\xffat", "the metadata"),  # was ignored: the weight became int8
        (b'["inline"]', b'["inl\xffne"]', "the metadata"),
        (b"outside", b"o\xfftside", "the graph"),
        (b"MatMul", b"Mat\xfful", "the graph"),
        (b"then_branch", b"then\xffbranch", "the graph"),
        (b"rows", b"r\xffws", "the graph"),
    ],
)
def test_text_that_is_not_utf_8_is_refused_by_every_reader(
    tmp_path: Path, old: bytes, new: bytes, where: str
) -> None:
    path = sound(tmp_path)
    model = onnx.load(path, load_external_data=False)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "rows"
    model.metadata_props.add(key="ugsep.keep_float", value='["inline"]')
    whole = model.SerializeToString()
    assert old in whole
    path.write_bytes(whole.replace(old, new))
    for read in (read_graph, read_model, file_sha256, content_sha256):
        with pytest.raises(
            UgsepError, match=rf"m.onnx': {where} has the text b.*, which is not UTF-8; do not"
        ) as caught:
            read(path)
        assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("data_type", "field", "values", "dims"),
    [
        (TensorProto.INT4, "int32_data", [1, 2, 3], [5]),
        (TensorProto.FLOAT16, "int32_data", [1] * 5, [5]),
        (TensorProto.BOOL, "int32_data", [1] * 6, [2, 3]),
        (TensorProto.COMPLEX64, "float_data", [1.0] * 6, [3]),
        (TensorProto.UINT32, "uint64_data", [7] * 2, [2]),
        (TensorProto.DOUBLE, "double_data", [1.0], []),
        (TensorProto.STRING, "string_data", [b"a", b"b"], [2]),
        (TensorProto.INT64, "int64_data", [], [0, 4]),
    ],
)
def test_typed_data_counts_as_its_type_stores_it(
    tmp_path: Path, data_type: int, field: str, values: list[object], dims: list[int]
) -> None:
    path = sound(tmp_path)
    model = onnx.load(path, load_external_data=False)
    tensor = TensorProto(name="typed", data_type=data_type, dims=dims)
    getattr(tensor, field).extend(values)
    model.graph.initializer.append(tensor)
    path.write_bytes(model.SerializeToString())
    read_graph(path)
    getattr(model.graph.initializer[-1], field).extend([1] if data_type != TensorProto.STRING else [b"c"])
    path.write_bytes(model.SerializeToString())
    with pytest.raises(UgsepError, match="'typed' of shape"):
        read_graph(path)


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    path = sound(tmp_path / "a")
    (path.parent / "m.data").rename(tmp_path / "m.data")
    (path.parent / "m.data").symlink_to(tmp_path / "m.data")
    with pytest.raises(UgsepError, match="a link out of the folder of the graph"):
        read_graph(path)
    (path.parent / "m.data").unlink()
    (path.parent / "m.data").symlink_to("m.data")
    with pytest.raises(UgsepError, match=r"which (cannot be read|is missing)"):
        read_graph(path)


def refusal(path: Path) -> str | None:
    """What a graph is refused with; None if it is read."""
    try:
        read_model(path)
    except UgsepError as error:
        return str(error)
    return None


def test_mutants_of_every_graph_are_read_or_refused_in_one_line(
    built_bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    graphs = sorted(built_bundle.rglob("*.onnx"))
    refused = 0
    for seed in range(MUTANTS):
        rng = Random(seed)
        source = rng.choice(graphs)
        folder = tmp_path / source.parent.name
        if not folder.exists():
            shutil.copytree(source.parent, folder)
        path = folder / source.name
        path.write_bytes(source.read_bytes())
        what = mutate(path, rng)
        line = refusal(path)
        refused += line is not None
        assert line is None or line.isprintable(), what
    assert MUTANTS / 3 < refused < MUTANTS
    assert capfd.readouterr().err == "", "libraries log nothing about what is refused"
