"""Graphs with mutated stamps through every quant command: they work, or are refused in one line."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner

from engines.cli.quant.main import main
from quant.schemes.schemes import Absmax
from quant.weights import quantize_side
from tests.mutations import mutated_bytes, mutated_json
from tests.quant.graph_fixtures import columns, write_graphs, write_shards

READERS = ("inspect", "inspect", "inspect", "weights", "weights", "calibrate", "sensitivity", "search")


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the float graphs and requests, and the quantized graphs below ``q``."""
    folder = tmp_path_factory.mktemp("quantized")
    for path in write_graphs(folder):
        quantize_side(path, folder / "q", scheme=Absmax())
    write_shards(folder / "data", columns(3), [5])
    return folder


def command(name: str, folder: Path) -> list[str]:
    options = {
        "inspect": [],
        "weights": ["--scheme", "absmax", "--out", str(folder / "out")],
        "calibrate": ["--synthetic", "1", "--out", str(folder / "out")],
        "sensitivity": ["--data", str(folder / "data"), "--scheme", "absmax"],
        "search": ["--data", str(folder / "data"), "--scheme", "absmax", "--min-sqnr", "200"],
    }
    return [name, str(folder), *options[name]]


def run(arguments: list[str]) -> bool:
    """Run a command; returns whether it refused its input, in one printable line."""
    result = CliRunner().invoke(main, arguments)
    if isinstance(result.exception, Exception):  # not SystemExit
        raise result.exception
    assert result.exit_code in (0, 1, 2), result.output  # 1: no policy reaches 200 dB
    if result.exit_code < 2:
        return False
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, result.stderr
    assert lines[0].isprintable()
    return True


def stamps(model: onnx.ModelProto) -> dict[str, str]:
    return {p.key: p.value for p in model.metadata_props}


def restamp(model: onnx.ModelProto, key: str, value: str) -> None:
    found = {**stamps(model), key: value}
    del model.metadata_props[:]
    for name, text in found.items():
        model.metadata_props.add(key=name, value=text)


def check_mutants(quantized: Path, tmp_path: Path, tries: int) -> None:
    rng = random.Random(11)
    refused: Counter[str] = Counter()
    for number in range(tries):
        name = READERS[number % len(READERS)]
        shutil.rmtree(tmp_path / "m", ignore_errors=True)
        shutil.copytree(quantized / "q" if name == "inspect" else quantized, tmp_path / "m")
        path = tmp_path / "m" / ("item.w8a16.onnx" if name == "inspect" else rng.choice(["user.onnx", "item.onnx"]))
        model = onnx.load(path, load_external_data=False)
        key = rng.choice(["ugsep.keep_float", "ugsep.quant" if name == "inspect" else "ugsep.side"])
        old = stamps(model)[key]
        new = mutated_json(json.loads(old) if old[0] in "[{" else old, rng)
        restamp(model, key, new.encode(errors="replace").decode())
        data = model.SerializeToString()
        if rng.random() < 0.2:  # the bytes of the stamps, at the end of the file: not UTF-8, not protobuf
            data = data[: -len(new)] + mutated_bytes(data[-len(new) :], rng)
        path.write_bytes(data)
        refused[name] += run(command(name, tmp_path / "m"))
    assert set(refused) == set(READERS)
    assert sum(refused.values()) > tries / 3


def test_mutated_stamps_are_read_or_refused_in_one_line(quantized: Path, tmp_path: Path) -> None:
    check_mutants(quantized, tmp_path, 56)


@pytest.mark.slow
def test_300_mutated_stamps_are_read_or_refused_in_one_line(quantized: Path, tmp_path: Path) -> None:
    check_mutants(quantized, tmp_path, 300)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("ugsep.quant", "{", "ugsep.quant: not valid JSON"),
        ("ugsep.quant", "[]", "ugsep.quant: expected a mapping"),
        ("ugsep.quant", '{"rows": 3}', "ugsep.quant: 'graph' is missing"),
        ("ugsep.quant", "[" * 9_000, "nested more than 64 levels deep"),
        ("ugsep.keep_float", "3", "keep_float is 3, not a list"),
        ("ugsep.keep_float", '["a", 1]', "keep_float[1] is 1, not a string"),
        ("ugsep.keep_float", "nan", "ugsep.keep_float: not valid JSON"),
    ],
)
def test_a_bad_stamp_is_named_with_its_field(
    quantized: Path, tmp_path: Path, key: str, value: str, message: str
) -> None:
    folder = tmp_path / "m"
    shutil.copytree(quantized / "q" if key == "ugsep.quant" else quantized, folder)
    path = folder / ("item.w8a16.onnx" if key == "ugsep.quant" else "item.onnx")
    model = onnx.load(path, load_external_data=False)
    restamp(model, key, value)
    path.write_bytes(model.SerializeToString())
    result = CliRunner().invoke(main, ["inspect", str(path)])
    assert (result.exit_code, message in result.stderr) == (2, True), result.stderr
    assert str(path) in result.stderr


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("bits", 4, "rows[1].bits is 4, not 8, 16 or 32"),
        ("kind", "conv", 'rows[1].kind is "conv", not matmul or table'),
        ("shape", [3, -1], "rows[1].shape[1] is -1, which is out of range"),
        ("quantized_bytes", -1, "rows[1].quantized_bytes is -1, which is out of range"),
        ("fp32_bytes", 2**63, "rows[1].fp32_bytes is 9223372036854775808, which is out of range"),
        ("sqnr_db", "x", 'rows[1].sqnr_db is "x", not a number'),
        ("weight", None, "rows[1].weight is null, not a string"),
    ],
)
def test_a_field_of_the_table_out_of_range(
    quantized: Path, tmp_path: Path, field: str, value: object, message: str
) -> None:
    folder = tmp_path / "m"
    shutil.copytree(quantized / "q", folder)
    path = folder / "item.w8a32.onnx"
    model = onnx.load(path, load_external_data=False)
    table = json.loads(stamps(model)["ugsep.quant"])
    table["rows"][1][field] = value
    restamp(model, "ugsep.quant", json.dumps(table))
    path.write_bytes(model.SerializeToString())
    result = CliRunner().invoke(main, ["inspect", str(path)])
    assert (result.exit_code, message in result.stderr) == (2, True), result.stderr


def test_names_from_a_file_do_not_reach_the_terminal_as_they_are(quantized: Path, tmp_path: Path) -> None:
    path = tmp_path / "user.onnx"
    model = onnx.load(quantized / "user.onnx")
    new = "[/b]\x1b[31m\u202ew"
    for node in model.graph.node:
        node.input[:] = [new if name == "user.in.weight" else name for name in node.input]
    next(t for t in model.graph.initializer if t.name == "user.in.weight").name = new
    onnx.save(model, path)
    result = CliRunner().invoke(main, ["inspect", str(path)])
    assert result.exit_code == 0, result.output
    assert "[/b]\\x1b[31m\\u202ew" in result.stdout
    assert "\x1b" not in result.stdout
