"""``ugsep split`` and ``ugsep build`` of models that PyTorch wrapped: they work, or one line names the mend."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from engines.cli.main import main
from tests.suites import slow_but

FILE = """
import torch
from torch import nn

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.user, self.item, self.head = nn.Linear(6, 8), nn.Linear(5, 8), nn.Linear(16, 1)

    def forward(self, profile, features):
        both = torch.cat([torch.relu(self.user(profile)), torch.relu(self.item(features))], 1)
        return self.head(both)[:, 0]

class Outer(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, profile, features):
        return self.inner(profile, features) * 2

def inputs():
    return {"profile": torch.randn(7, 6), "features": torch.randn(7, 5)}

def plain():
    return Model().eval(), inputs()

def made(wrap):
    return wrap(Model().eval()), inputs()

def parallel():
    return made(nn.DataParallel)

def parallel_part():
    return made(lambda model: Outer(nn.DataParallel(model)))

def compiled():
    return made(torch.compile)

def compiled_part():
    return made(lambda model: Outer(torch.compile(model)))

def compiled_forward():
    model = Model().eval()
    model.forward = torch.compile(model.forward)
    return model, inputs()

def compiled_in_place():
    model = Model().eval()
    model.compile()
    return model, inputs()

def compiled_part_in_place():
    model = Model().eval()
    model.compile()
    return Outer(model), inputs()

def all_at_once():
    model, rows = compiled_forward()
    model.user = torch.compile(model.user)
    model.item.compile()
    return nn.DataParallel(torch.compile(Outer(nn.DataParallel(model)))), rows

def traced():
    return made(lambda model: torch.jit.trace(model, tuple(inputs().values())))

def scripted():
    return made(torch.jit.script)

def traced_part():
    return made(lambda model: Outer(torch.jit.trace(model, tuple(inputs().values()))))

def scripted_part():
    return made(lambda model: Outer(torch.jit.script(model)))

def parallel_scripted():
    return made(lambda model: nn.DataParallel(torch.jit.script(model)))

def function():
    model, rows = plain()
    return (lambda profile, features: model(profile, features)), rows
"""

WORK = (
    "parallel", "parallel_part", "compiled", "compiled_part", "compiled_forward", "compiled_in_place",
    "compiled_part_in_place", "traced_part", "all_at_once",
)  # fmt: skip
WHOLE = "the model is a TorchScript module, which cannot be traced again; pass the original nn.Module"
PART = "submodule 'inner' is TorchScript; build the model with the original module"
REFUSED = {
    "traced": WHOLE,
    "scripted": WHOLE,
    "parallel_scripted": WHOLE,
    "scripted_part": PART,
    "function": "returned (function, dict); return (module, example_inputs), inputs as a dict or tuple",
}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "model.py"
    path.write_text(FILE)
    return path


def compilations() -> dict[str, int]:
    """Return how many frames torch.compile has compiled since the last reset."""
    return dict(torch._dynamo.utils.counters["frames"])


def run(command: str, file: Path, factory: str, *options: str) -> Result:
    sides = ["--user", "profile", "--item", "features"]
    return CliRunner().invoke(main, [command, f"{file}:{factory}", *sides, *options])


def build(file: Path, factory: str, out: Path) -> Result:
    # Quality gates of random weights say nothing; the exports are compared with PyTorch all the same.
    loose = ["--set", "gates.kendall_tau=0.5", "--set", "gates.sqnr_db=10", "--set", "gates.max_probability=0.2"]
    small = ["--set", "serving.candidates=[4]", "--backend", "onnxruntime", "--no-cache", "--json"]
    return run("build", file, factory, *loose, *small, "--out", str(out))


@pytest.mark.parametrize("factory", WORK)
def test_wrappers_that_only_change_how_a_model_runs_do_not_matter_to_split(file: Path, factory: str) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    result = run("split", file, factory, "--json")
    assert result.exit_code == 0, result.output
    assert compilations() == {}, "compiling takes minutes"
    proof = json.loads(result.stdout)["proof"]
    assert proof["max_rel"] < 1e-5  # float32 sums of 16 products
    assert proof["row_max_abs"] == 0


@pytest.mark.parametrize("factory", slow_but({"all_at_once"}, ["all_at_once", "compiled_forward"]))
def test_wrappers_that_only_change_how_a_model_runs_do_not_matter_to_build(
    file: Path, factory: str, tmp_path: Path
) -> None:
    result = build(file, factory, tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["passed"] is True


@pytest.mark.parametrize("command", ["split", "build"])
@pytest.mark.parametrize("factory", REFUSED)
def test_what_cannot_be_traced_again_is_one_line(file: Path, factory: str, command: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = build(file, factory, out) if command == "build" else run("split", file, factory)
    assert result.exit_code == 2, result.output
    (line,) = (line for line in result.stderr.splitlines() if line.startswith("error: "))
    assert line.endswith(REFUSED[factory])
    assert result.stdout == ""
    assert not out.exists()
