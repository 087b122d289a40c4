"""The two files of fixtures: written, read back, and damaged in many ways."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from engines.bundle.fixture_file import Fixture, Fixtures, load_fixtures, save_fixtures
from graphs.base.errors import UgsepError

USER = {"age": np.ones((1, 2), np.float32), "user_id": np.array([7])}
MANY = {"age": np.ones((2, 2), np.float32), "user_id": np.array([7, 8])}
ITEMS = {"item_id": np.arange(3)}
LOGITS = {"like": np.array([0.5, -1.0, 2.0], np.float32)}
FIXTURES = Fixtures(
    (
        Fixture("one", USER, {"item_id": np.array([4])}, expected={"like": np.array([1.5], np.float32)}),
        Fixture("same", USER, ITEMS, None, LOGITS, {"like": LOGITS["like"] + 1}, "Anna", {"like": np.ones(3, "f4")}),
        Fixture("two", MANY, ITEMS, np.array([1, 0, 1]), LOGITS),
    ),
    {"like": 0.01},
    {"item_id": {"0": "Amélie (2001)", "2": "<b>Se7en</b>"}},
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_fixtures(tmp_path, "fixtures", FIXTURES)
    return tmp_path


def test_what_is_written_is_read_back(folder: Path) -> None:
    found = load_fixtures(folder, "fixtures", "fix it")
    assert (found.tolerances, found.names) == (FIXTURES.tolerances, FIXTURES.names)
    for a, b in zip(found.requests, FIXTURES.requests, strict=True):
        assert (a.name, a.label, a.users, a.candidates) == (b.name, b.label, b.users, b.candidates)
        for kind in ("user", "items", "expected", "reference", "labels"):
            given, wanted = getattr(a, kind), getattr(b, kind)
            assert sorted(given) == sorted(wanted)
            for name, value in wanted.items():
                assert given[name].dtype == value.dtype
                np.testing.assert_array_equal(given[name], value)
    assert found.requests[0].user_index is None
    np.testing.assert_array_equal(found.requests[2].user_index, [1, 0, 1])  # type: ignore[arg-type]


def test_the_same_fixtures_are_the_same_bytes_and_equal_tensors_are_stored_once(folder: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    again.mkdir()
    save_fixtures(again, "fixtures", load_fixtures(folder, "fixtures", "fix it"))
    for name in ("fixtures.json", "fixtures.safetensors"):
        assert (again / name).read_bytes() == (folder / name).read_bytes()
    stored = safetensors.numpy.load_file(folder / "fixtures.safetensors")
    assert {name for name in stored if name.startswith("same/user/")} == set(), "that user is stored with 'one'"
    assert "two/expected/like" not in stored


def test_requests_of_one_name_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(UgsepError, match="request 'one' is given twice"):
        save_fixtures(tmp_path, "fixtures", Fixtures((FIXTURES.requests[0], FIXTURES.requests[0])))
    assert list(tmp_path.iterdir()) == []


Edit = Callable[[dict[str, Any], dict[str, Any]], object]


def entry(**changes: Any) -> Edit:
    return lambda raw, _: raw["requests"][1].update(changes)


def inner(kind: str, **names: str) -> Edit:
    return lambda raw, _: raw["requests"][1][kind].update(names)


def tensor(name: str, value: Any) -> Edit:
    return lambda _, tensors: tensors.__setitem__(name, value)


BAD: dict[str, tuple[Edit, str]] = {
    "version missing": (lambda raw, _: raw.pop("version"), "version is null; this ugsep reads 1; fix it"),
    "newer version": (lambda raw, _: raw.update(version=2), "version is 2"),
    "version of another type": (lambda raw, _: raw.update(version=True), "version is true"),
    "unknown field": (lambda raw, _: raw.update(surprise=1), "unknown setting 'surprise'"),
    "missing field": (lambda raw, _: raw["requests"][0].pop("users"), "'users' is missing"),
    "requests are no list": (lambda raw, _: raw.update(requests={}), "fixtures: requests is {}, not a list"),
    "rows are text": (entry(users="1"), r'requests\[1\].users is "1", not an integer'),
    "a huge number": (entry(candidates=10**400), "out of range"),
    "a name given twice": (entry(name="one"), "request 'one' is given twice"),
    "no name": (entry(name=""), "a request has no name"),
    "another number of candidates": (entry(candidates=4), r"'same': tensor 'same/items/item_id' is \[3\], not 4"),
    "no candidates": (entry(candidates=0), "not 0 rows"),
    "negative users": (entry(users=-1), "not -1 rows"),
    "tensor missing": (inner("items", item_id="gone"), "request 'same': no tensor 'gone' in fixtures.safetensors"),
    "tensor of another request": (inner("items", item_id="one/items/item_id"), r"is \[1\], not 3 rows"),
    "tensor unused": (tensor("left over", np.ones(1)), "no request uses tensor 'left over'"),
    "no rows axis": (tensor("same/items/item_id", np.array(3)), r"is \[\], not 3 rows"),
    "empty tensor": (tensor("same/items/item_id", np.zeros((0, 1 << 40))), r"not 3 rows"),
    "NaN": (tensor("same/expected/like", np.array([1, np.nan, 3], np.float32)), "not made of finite numbers"),
    "infinite": (tensor("one/user/age", np.full((1, 2), np.inf)), "tensor 'one/user/age' is not made of finite"),
    "complex": (tensor("one/user/age", np.ones((1, 2), np.complex64)), "finite numbers|NumPy types"),
    "tolerance is text": (lambda raw, _: raw.update(tolerances={"like": "1"}), 'like is "1", not a number'),
    "tolerance is NaN": (lambda raw, _: raw.update(tolerances={"like": float("nan")}), "NaN is not a JSON number"),
    "text that controls a terminal": (entry(label="\x1b[2J"), "cannot be printed"),
    "tensor name that controls a terminal": (tensor("\x1b[2J", np.ones(1)), "cannot be printed"),
    "name of an id is a number": (lambda raw, _: raw.update(names={"item_id": {"0": 1}}), "names.item_id.* is 1"),
}  # fmt: skip


@pytest.mark.parametrize("case", sorted(BAD))
def test_malformed_content_is_refused_in_one_line(folder: Path, case: str) -> None:
    change, says = BAD[case]
    raw = json.loads((folder / "fixtures.json").read_text())
    tensors = safetensors.numpy.load_file(folder / "fixtures.safetensors")
    change(raw, tensors)
    (folder / "fixtures.json").write_text(json.dumps(raw))
    safetensors.numpy.save_file(tensors, folder / "fixtures.safetensors")
    with pytest.raises(UgsepError, match=says) as caught:
        load_fixtures(folder, "fixtures", "fix it")
    assert str(caught.value).isprintable()
    assert "fix it" in str(caught.value)


def header(fields: dict[str, Any], data: bytes = b"") -> bytes:
    text = json.dumps(fields).encode()
    return len(text).to_bytes(8, "little") + text + data


FILES: dict[str, bytes] = {
    "empty": b"",
    "too short": b"\x07",
    "header longer than the file": (1 << 60).to_bytes(8, "little") + b"{}",
    "header is no JSON": (4).to_bytes(8, "little") + b"{{{{",
    "dtype NumPy lacks": header({"a": {"dtype": "BF16", "shape": [1], "data_offsets": [0, 2]}}, b"\0\0"),
    "unknown dtype": header({"a": {"dtype": "Q3", "shape": [1], "data_offsets": [0, 2]}}, b"\0\0"),
    "shape that lies": header({"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 4]}}, b"\0" * 4),
    "shape that overflows": header({"a": {"dtype": "F32", "shape": [1 << 62, 4], "data_offsets": [0, 4]}}, b"\0" * 4),
    "overlapping tensors": header({n: {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]} for n in "ab"}, b"\0\0"),
    "offsets beyond the end": header({"a": {"dtype": "U8", "shape": [9], "data_offsets": [0, 9]}}, b"\0"),
    "more axes than NumPy has": header({"a": {"dtype": "U8", "shape": [1] * 99, "data_offsets": [0, 1]}}, b"\0"),
    "bytes left over": header({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}, b"\0\0"),
}


@pytest.mark.parametrize("case", sorted(FILES))
def test_a_damaged_tensor_file_is_refused_in_one_line(folder: Path, case: str) -> None:
    (folder / "fixtures.safetensors").write_bytes(FILES[case])
    with pytest.raises(UgsepError, match=r"fixtures.safetensors: not a safetensors file .*; fix it") as caught:
        load_fixtures(folder, "fixtures", "fix it")
    assert str(caught.value).isprintable()


def test_every_cut_of_the_tensor_file_is_refused(folder: Path) -> None:
    path = folder / "fixtures.safetensors"
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(UgsepError, match="not a safetensors file"):
            load_fixtures(folder, "fixtures", "fix it")


@pytest.mark.parametrize("name", ["fixtures.json", "fixtures.safetensors"])
def test_a_file_that_is_missing_or_no_file_is_refused_and_not_waited_for(folder: Path, name: str) -> None:
    path = folder / name
    path.unlink()
    with pytest.raises(UgsepError, match=f"no {name}; fix it"):
        load_fixtures(folder, "fixtures", "fix it")
    os.mkfifo(path)
    with pytest.raises(UgsepError, match=f"{name}: a pipe, not a file; fix it"):
        load_fixtures(folder, "fixtures", "fix it")
    path.unlink()
    with path.open("wb") as stream:
        stream.truncate((64 << 20) + 1)
    with pytest.raises(UgsepError, match=r"size \d+ is out of range"):
        load_fixtures(folder, "fixtures", "fix it")
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(UgsepError, match="a link leads out"):
        load_fixtures(folder, "fixtures", "fix it")
