"""``ugsep split``: exit statuses, one-line errors, text, JSON and picture."""

import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from engines.cli.group import CommandGroup
from engines.cli.split import split_command

FILE = """
import random
import time

import torch
from torch import nn

class Model(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.tower = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
        self.norm = nn.BatchNorm1d(4) if norm else nn.Identity()

    def forward(self, profile, history, item):
        u = self.norm(self.tower(torch.cat([profile, history], -1)))
        return {"score": (u * item).sum(-1)}

def inputs():
    return {"profile": torch.randn(3, 4), "history": torch.randn(3, 2), "item": torch.randn(3, 4)}

def factory():
    return Model(False).eval(), inputs()

def training():
    return Model(True), inputs()

def raising():
    raise ValueError("no checkpoint")

class Wrong(Model):
    def forward(self, profile, history, item):
        u = self.work(self.tower(torch.cat([profile, history], -1)))
        return {"score": (u * item).sum(-1)}

def wrong(work):
    model = Wrong(False).eval()
    model.work = work
    return model, inputs()

def printing():
    print("factory ran")
    return wrong(lambda u: print("forward ran") or u)

def branching():
    return wrong(lambda u: u if u.sum() > 0 else -u)

def reading_a_value():
    return wrong(lambda u: u * u[0, 0].item())

def misshapen():
    return wrong(lambda u: u @ torch.ones(3, 4))

def mistyped():
    model, rows = factory()
    return model, {**rows, "profile": rows["profile"].double()}

def parallel():
    return nn.DataParallel(factory()[0]), inputs()

def compiled():
    return torch.compile(factory()[0]), inputs()

def averaged():
    return torch.optim.swa_utils.AveragedModel(factory()[0]), inputs()

def bfloat16():
    return factory()[0].bfloat16(), {k: v.bfloat16() for k, v in inputs().items()}

def jit_traced():
    rows = inputs()
    return torch.jit.trace(factory()[0], tuple(rows.values()), strict=False), rows

def jit_part():
    model, rows = factory()
    model.tower = torch.jit.script(model.tower)
    return model, rows

def clock():
    return wrong(lambda u: u * (time.time() % 7))

def drawing():
    return wrong(lambda u: u * random.random())

def dropping():
    return wrong(lambda u: nn.functional.dropout(u, 0.3))

def noisy():
    return wrong(lambda u: u + torch.rand(4))

class Meeting(Model):
    def forward(self, profile, history, item):
        return {"score": (profile * item).sum(-1) + history[:, 0]}

def meeting():
    return Meeting(False).eval(), inputs()

def misnamed():
    model, rows = factory()
    return model, {"profil": rows.pop("profile"), **rows}
"""


@click.group(cls=CommandGroup)
def cli() -> None:
    pass


cli.add_command(split_command)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "model.py"
    path.write_text(FILE)
    return path


def run(
    file: Path, *arguments: str, factory: str = "factory", sides: tuple[str, str] = ("profile,history", "item")
) -> Result:
    user, item = sides
    return CliRunner().invoke(cli, ["split", f"{file}:{factory}", "--user", user, "--item", item, *arguments])


def test_summary_explanation_and_picture(file: Path, tmp_path: Path) -> None:
    result = run(file)
    assert result.exit_code == 0, result.output
    assert "of the FLOPs run once per request" in result.output
    assert "max error" in result.output
    assert "Cost by module" not in result.output
    page = tmp_path / "out.html"
    result = run(file, "--explain", "--graph", str(page), "--candidates", "100")
    assert result.exit_code == 0, result.output
    assert "Cost by module" in result.output
    assert "100 candidates" in result.output
    assert "<svg" in page.read_text()


def test_json(file: Path) -> None:
    result = run(file, "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["proof"]["rows"] == 520
    assert told["split"]["state"][0] == {
        "name": "state_tower_2", "dtype": "float32", "row_shape": [4], "bytes_per_user": 16,
    }  # fmt: skip


def test_with_nothing_to_reuse_it_warns_and_fails_only_below_a_share_that_was_asked_for(
    file: Path, tmp_path: Path
) -> None:
    result = run(file, "--explain", "--graph", str(tmp_path / "out.html"), factory="meeting")
    assert result.exit_code == 0, result.output
    assert result.stderr.startswith("warning: only 0.0% of the FLOPs run once per request; mul.Tensor in the model (")
    assert result.stderr.count("\n") == 1
    assert "--min-reuse" not in result.stderr
    assert run(file, "--min-reuse", "0", factory="meeting").exit_code == 0
    result = run(file, "--min-reuse", "0.5", factory="meeting")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: 0.0% of the FLOPs run once per request, less than --min-reuse 0.5; ")
    assert result.stderr.count("\n") == 1
    assert run(file, "--min-reuse", "0.5").exit_code == 0
    assert "warning" not in run(file).stderr
    assert run(file, "--min-reuse", "2").exit_code == 2


def test_what_the_model_prints_is_no_part_of_the_answer(file: Path) -> None:
    result = run(file, "--json", factory="printing")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["proof"]["rows"] == 520
    assert "factory ran" in result.stderr
    assert "forward ran" in result.stderr


@pytest.mark.parametrize("factory", ["parallel", "compiled", "averaged", "bfloat16"])
def test_wrapped_and_16_bit_models_split(file: Path, factory: str) -> None:
    result = run(file, factory=factory)
    assert result.exit_code == 0, result.output
    assert ("are computed in float32" in result.stdout) == (factory == "bfloat16")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"factory": "raising"}, "raised ValueError: no checkpoint at model.py:"),
        ({"factory": "branching"}, "Could not guard on data-dependent expression"),
        ({"factory": "reading_a_value"}, " picks rows by their position in the batch"),
        ({"factory": "misshapen"}, "the model fails on rows like its example inputs: mat1 and mat2 shapes"),
        ({"factory": "mistyped"}, "the model fails on rows like its example inputs: "),
        ({"factory": "misnamed", "sides": ("profil,history", "item")}, "do not match the model's forward: missing a"),
        ({"factory": "training"}, "norm (model.py:15) normalises with the statistics of the batch; call .eval()"),
        (
            {"factory": "jit_traced"},
            "the model is a TorchScript module, which cannot be traced again; pass the original",
        ),
        ({"factory": "jit_part"}, "submodule 'tower' is TorchScript; build the model with the original module"),
        ({"factory": "clock"}, "the model's 'score' changes with time() at model.py:"),
        ({"factory": "drawing"}, "the model's 'score' changes with random numbers at model.py:"),
        ({"factory": "dropping"}, "drops values at random; call .eval() on the model"),
        ({"factory": "noisy"}, "draws random numbers, so scores differ between calls"),
        ({"sides": ("profile", "item")}, "input 'history' is on neither side"),
        ({"sides": ("profile,history,item", "item")}, "input 'item' is on both sides"),
        ({"sides": ("profile,histroy", "item")}, "no input 'histroy', did you mean 'history'?"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(file: Path, changes: dict, message: str) -> None:
    result = run(file, **changes)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert message in result.stderr
