"""The stamp of an ONNX file: written by the export, read by quantization."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir
import pytest

from export.metadata import Stamp, keep_float_patterns, side_of
from graphs.base.errors import UgsepError
from graphs.base.names import GraphSide


@pytest.fixture
def model() -> onnx.ModelProto:
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy")
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    return onnx.helper.make_model(graph)


@pytest.mark.parametrize("side", ["full", "user", "item"])
def test_a_stamp_reads_back_from_either_kind_of_model(model: onnx.ModelProto, side: GraphSide) -> None:
    stamped = ir.from_proto(model)
    Stamp("m", side, "fp32", ("*.router", "head")).write(stamped)
    for read in (stamped, ir.to_proto(stamped)):
        assert side_of(read, Path("other.onnx")) == side
        assert keep_float_patterns(read, Path("a.onnx")) == ("*.router", "head")


def test_an_unstamped_file_is_what_its_name_says(model: onnx.ModelProto) -> None:
    assert side_of(model, Path("onnx/item.w8a32.onnx")) == "item"
    assert keep_float_patterns(model, Path("a.onnx")) == ()
    with pytest.raises(UgsepError, match=r"'other.onnx' does not say its side; stamp ugsep\.side"):
        side_of(model, Path("other.onnx"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "'a.onnx': ugsep.keep_float: not valid JSON"),
        ('{"a": 1}', "'a.onnx': keep_float is {\"a\": 1}, not a list"),
        ('["a", 3]', r"'a.onnx': keep_float\[1\] is 3, not a string"),
        ("null", "keep_float is null, not a list; export the model again, or stamp a JSON list of names"),
    ],
)
def test_a_malformed_stamp_names_file_and_field(model: onnx.ModelProto, text: str, message: str) -> None:
    onnx.helper.set_model_props(model, {"ugsep.keep_float": text})
    with pytest.raises(UgsepError, match=message):
        keep_float_patterns(model, Path("a.onnx"))
