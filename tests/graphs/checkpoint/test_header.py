"""Headers of safetensors files are read with their offsets, or refused in one line."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from graphs.base.errors import UgsepError
from graphs.checkpoint.header import read_header
from tests.mutations import mutated_json, refusal

ARRAYS = {
    "a.weight": np.arange(15, dtype=np.float32).reshape(3, 5),
    "b": np.arange(7, dtype=np.int64),
    "empty": np.empty((0, 4), np.float16),
}


def written(folder: Path, text: str | None = None) -> Path:
    """Write a file of ``ARRAYS``, with another text as its header if one is given."""
    path = folder / "m.safetensors"
    save_file(ARRAYS, path, metadata={"token": "x"})
    if text is not None:
        raw = path.read_bytes()
        data = raw[8 + int.from_bytes(raw[:8], "little") :]
        new = text.encode(errors="surrogatepass")
        path.write_bytes(len(new).to_bytes(8, "little") + new + data)
    return path


def header(path: Path) -> dict[str, Any]:
    raw = path.read_bytes()
    found: dict[str, Any] = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    return found


def test_offsets_lead_to_the_values(tmp_path: Path) -> None:
    path = written(tmp_path)
    entries, metadata = read_header(path, "again")
    assert metadata == {"token": "x"}
    assert set(entries) == set(ARRAYS)
    for name, array in ARRAYS.items():
        assert entries[name].shape == array.shape
        found = np.frombuffer(path.read_bytes(), array.dtype, array.size, entries[name].offset)
        np.testing.assert_array_equal(found.reshape(array.shape), array)


def as_list(found: dict[str, Any]) -> str:
    """Return the header with an entry as a list of its values, which the library takes too."""
    return json.dumps(found | {"b": [found["b"][name] for name in ("dtype", "shape", "data_offsets")]})


def twice(found: dict[str, Any]) -> str:
    return json.dumps(found)[:-1] + f', "b": {json.dumps(found["b"])}}}'


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (as_list, "the header's entry of 'b' is a list, not a mapping; again"),
        (twice, "'b' is given twice|is truncated or not safetensors"),
        (lambda found: json.dumps(found | {"b": found["b"] | {"dtype": "F99"}}), "truncated or not safetensors"),
        (lambda found: json.dumps(found | {"b": found["b"] | {"shape": [2**62, 4]}}), "truncated or not safetensors"),
        (lambda found: "[" * 500, "truncated or not safetensors"),
        (lambda found: "", "truncated or not safetensors"),
    ],
)
def test_a_header_that_only_the_library_would_take_is_one_line(tmp_path: Path, change: Any, message: str) -> None:
    path = written(tmp_path, change(header(written(tmp_path))))
    with pytest.raises(UgsepError, match=message) as caught:
        read_header(path, "again")
    assert str(caught.value).isprintable()
    assert str(path) in str(caught.value)


def test_200_mutated_headers_are_read_or_refused_in_one_line(tmp_path: Path) -> None:
    rng = random.Random(5)
    found = header(written(tmp_path))
    refused = 0
    for _ in range(200):
        path = written(tmp_path, mutated_json(found, rng))
        refused += bool(refusal(read_header, path, "again"))
    assert 100 < refused < 200
