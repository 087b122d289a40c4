"""``ugsep build`` of a user's file: hashed ids, masks of every pattern, 16-bit floats, prints in forward."""

import json
import textwrap
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from engines.bundle.manifest import read_manifest
from engines.cli.main import main
from engines.serve.ranker import Ranker
from graphs.trace.widen import WIDENED
from tests.suites import slow_but

FILE = """
import torch
from torch import nn

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.user, self.history = nn.Linear(3, 8), nn.Embedding(50, 8)
        self.quotient, self.remainder, self.head = nn.Embedding(40, 8), nn.Embedding(40, 8), nn.Linear(8, 1)

    def forward(self, user, history, mask, key):
        print("forward ran")
        rows = self.history(history) * mask[..., None]
        u = self.user(user.to(self.head.weight.dtype)) + rows.sum(1) / mask.sum(1, keepdim=True)  # NaN if empty
        quotient = torch.div(key, 1000, rounding_mode="floor") % 40
        return self.head(torch.relu(u * (self.quotient(quotient) + self.remainder(key % 40))))[:, 0].float()

def inputs():
    return {"user": torch.randn(7, 3), "history": torch.randint(0, 50, (7, 6)), "mask": torch.rand(7, 6) > 0.3,
            "key": torch.arange(7)}

def factory():
    return Model().eval(), inputs()

def sixteen_bits():
    return Model().bfloat16().eval(), inputs()

class Meeting(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(6, 16)

    def forward(self, user, history, mask, key):
        rows = torch.cat([user, key[:, None] / 7, history[:, :1] / 50, mask[:, :1].float()], 1)
        return nn.functional.glu(self.head(rows.tanh())).sum(1)

def meeting():
    return Meeting().eval(), inputs()

class Empty(Model):
    def forward(self, user, history, mask, key):
        return super().forward(user, history, mask & False, key)

def empty():
    return Empty().eval(), inputs()
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "model.py"
    path.write_text(textwrap.dedent(FILE))
    return path


def arguments(file: Path, factory: str, out: Path) -> list[str]:
    sides = ["--user", "user,history,mask", "--item", "key"]
    # Quality gates of random weights say nothing; the exports are compared with PyTorch all the same.
    loose = ["--set", "gates.kendall_tau=0.5", "--set", "gates.sqnr_db=10", "--set", "gates.max_probability=0.2"]
    small = ["--set", "serving.candidates=[4,8]", "--backend", "onnxruntime", "--no-cache", "--json"]
    return ["build", f"{file}:{factory}", *sides, *loose, *small, "--out", str(out)]


@pytest.mark.parametrize("factory", slow_but({"factory"}, ["factory", "sixteen_bits"]))
def test_a_model_with_hashed_ids_and_masks_is_built(file: Path, factory: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, arguments(file, factory, tmp_path / "out"))
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)  # what forward prints is elsewhere
    assert report["passed"] is True
    assert "forward ran" in result.stderr
    assert (WIDENED in json.dumps(report)) == (factory == "sixteen_bits")


@pytest.mark.parametrize("backend", slow_but({"onnxruntime"}, ["onnxruntime", "openvino"]))
def test_a_model_with_nothing_to_reuse_is_built(file: Path, backend: str, tmp_path: Path) -> None:
    pytest.importorskip(backend)
    out = tmp_path / "out"
    asked = arguments(file, "meeting", out)
    asked[asked.index("--backend") + 1] = backend
    result = CliRunner().invoke(main, asked)
    assert result.exit_code == 0, result.stderr
    assert "warning: only 0.5% of the FLOPs run once per request; cat.default" in result.stderr
    report = json.loads(result.stdout)
    assert report["passed"] is True
    assert report["latency"]["limit"] < 1.01
    assert any("joins user and item" in note for note in report["notes"])
    user = {"user": np.ones((1, 3), "f4"), "history": np.ones((1, 6), "i8"), "mask": np.ones((1, 6), "?")}
    with Ranker.from_bundle(out) as ranker:
        (scores,) = ranker.score(user, {"key": np.arange(5)}).values()
    assert len(set(scores.tolist())) == 5  # the state reaches every candidate, and so do the items
    again = CliRunner().invoke(main, [*asked, "--min-reuse", "0.1"])  # also if nothing changed
    assert again.exit_code == 2
    assert "less than --min-reuse 0.1" in again.stderr
    assert read_manifest(out).passed


def test_a_model_without_a_finite_score_is_refused_in_one_line(file: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, arguments(file, "empty", tmp_path / "out"))
    assert result.exit_code == 2
    (error,) = (line for line in result.stderr.splitlines() if "error" in line)
    assert "gives a NaN or infinity for a row of each of 24 random requests" in error
    assert not (tmp_path / "out").exists()
