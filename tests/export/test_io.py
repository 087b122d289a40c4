"""ONNX files as every package reads, checks, hashes and stamps them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from export import io
from graphs.base.errors import UgsepError
from tests.export.lowering_graphs import ffn


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    return ffn(tmp_path / "a" / "full.onnx", np.random.default_rng(0), True, "gelu")


@pytest.mark.parametrize("read", [io.read_graph, io.read_model, io.file_sha256, io.content_sha256])
def test_missing_and_broken_files_are_one_line(read, tmp_path: Path) -> None:
    with pytest.raises(UgsepError, match="does not exist; export the model first"):
        read(tmp_path / "none.onnx")
    os.mkfifo(tmp_path / "pipe.onnx")
    for odd, what in ((tmp_path, "a folder"), (tmp_path / "pipe.onnx", "a pipe")):
        with pytest.raises(UgsepError, match=f"is {what}, not a file; export the model again"):
            read(odd)
    (tmp_path / "a.onnx").write_bytes(b"\xff" * 64)
    with pytest.raises(UgsepError, match="is not a readable ONNX file") as error:
        read(tmp_path / "a.onnx")
    assert "\n" not in str(error.value)


def test_an_unknown_operator_fails_the_check(graph: Path) -> None:
    io.check_file(graph)
    model = io.read_model(graph)
    next(n for n in model.graph if n.op_type == "MatMul").op_type = "NoSuchOp"
    ir.save(model, graph.with_name("bad.onnx"))
    with pytest.raises(UgsepError, match="is not valid ONNX"):
        io.check_file(graph.with_name("bad.onnx"))


def test_only_the_content_hash_ignores_how_weights_are_stored(graph: Path, tmp_path: Path) -> None:
    inline = tmp_path / "inline.onnx"
    onnx.save(onnx.load(graph), inline)
    assert io.content_sha256(inline) == io.content_sha256(graph)
    assert io.file_sha256(inline) != io.file_sha256(graph)


@pytest.mark.parametrize("digest", [io.file_sha256, io.content_sha256])
def test_hashes_see_the_external_data_but_not_the_folder(digest, graph: Path, tmp_path: Path) -> None:
    other = ffn(tmp_path / "b" / "full.onnx", np.random.default_rng(0), True, "gelu")
    assert digest(graph) == digest(other)
    file = other.with_name("full.onnx.data")
    data = bytearray(file.read_bytes())
    data[7] ^= 1
    file.write_bytes(data)
    assert digest(graph) != digest(other)
    file.unlink()
    with pytest.raises(UgsepError, match=r"its data is in 'full.onnx.data', which is missing"):
        digest(other)


def test_truncated_weights_have_no_content_hash(graph: Path) -> None:
    data = graph.with_name("full.onnx.data")
    data.write_bytes(data.read_bytes()[:-600])
    with pytest.raises(UgsepError, match=r"is not inside 'full.onnx.data' of \d+ bytes"):
        io.content_sha256(graph)


@pytest.mark.parametrize("read", [io.read_graph, io.read_model])
def test_a_stamp_replaces_its_own_keys_and_keeps_the_others(read, graph: Path) -> None:
    model = read(graph)
    assert io.properties(model) == {}
    io.stamp(model, side="item", model="m")
    io.stamp(model, side="user", precision="w8a32")
    stamped = {"ugsep.model": "m", "ugsep.precision": "w8a32", "ugsep.side": "user"}
    assert list(io.properties(model).items()) == sorted(stamped.items())


def test_hard_links_of_weights_are_one_line(graph: Path, tmp_path: Path) -> None:
    model = onnx.load(graph)
    onnx.save(model, graph, save_as_external_data=True, location="full.onnx.data", size_threshold=0)
    io.read_model(graph)
    os.link(graph.with_name("full.onnx.data"), tmp_path / "other")  # as cp -al makes them, which onnx_ir refuses
    with pytest.raises(UgsepError, match=r"full.onnx.data' has hard links, .* copy the folder without them"):
        io.read_model(graph)
