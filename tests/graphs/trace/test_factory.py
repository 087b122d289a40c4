"""Loading a factory from a file: what works and every error."""

from pathlib import Path

import pytest
import torch
from torch import nn

from graphs.base.errors import UgsepError
from graphs.trace.factory import is_factory, load_factory

FILE = """
import torch
from torch import nn
from neighbour import WIDTH

class Model(nn.Module):
    def forward(self, u, i):
        return (u.exp() * i).sum(-1)

def keywords():
    return Model(), {"u": torch.randn(3, WIDTH), "i": torch.randn(3, WIDTH)}

def positional():
    return Model(), (torch.randn(3, WIDTH), torch.randn(3, WIDTH))

def raises():
    return Model(), {"u": torch.randn(3, WIDTH)}["missing"]

def exits():
    raise SystemExit("no weights here")

def two_lines():
    raise ValueError("first\\nsecond")

def silent():
    raise RuntimeError()

def wrong():
    return Model()

def wrong_pair():
    return {}, Model()

NUMBER = 3
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "neighbour.py").write_text("WIDTH = 5\n")
    path = tmp_path / "model.py"
    path.write_text(FILE)
    return path


def test_loads_both_kinds_of_example(file: Path) -> None:
    for name in ("keywords", "positional"):
        model, example = load_factory(f"{file}:{name}")
        assert isinstance(model, nn.Module)
        rows = list(example.values()) if isinstance(example, dict) else list(example)
        assert [tuple(r.shape) for r in rows] == [(3, 5), (3, 5)]
        assert all(isinstance(r, torch.Tensor) for r in rows)
    assert is_factory(f"{file}:keywords")
    assert not is_factory("tokenmixer-large")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("{file}", "is not a factory; write path/to/file.py:factory"),
        ("{file}x:keywords", "no file '"),
        ("{file}:keyword", "'model.py' has no function 'keyword', did you mean 'keywords'?"),
        ("{file}:NUMBER", "'model.py' has no function 'NUMBER'"),
        ("{file}:raises", "raised KeyError: 'missing' at model.py:17; run the file by itself for a traceback"),
        ("{file}:exits", "raised SystemExit: no weights here at model.py:20; run"),
        ("{file}:two_lines", "raised ValueError: first second at model.py:23; run"),
        ("{file}:silent", "raised RuntimeError at model.py:26; run"),
        ("{file}:wrong", "returned a Model; return (module, example_inputs)"),
        ("{file}:wrong_pair", "returned (dict, Model); return (module, example_inputs)"),
    ],
)
def test_errors(file: Path, name: str, message: str) -> None:
    with pytest.raises(UgsepError) as error:
        load_factory(name.format(file=file))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_cannot_be_imported(tmp_path: Path) -> None:
    path = tmp_path / "broken.py"
    path.write_text("import torch\n\nraise RuntimeError('no weights')\n")
    with pytest.raises(UgsepError, match=r"importing '.*broken.py' raised RuntimeError: no weights at broken.py:3"):
        load_factory(f"{path}:factory")
