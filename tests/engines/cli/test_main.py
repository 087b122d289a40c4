"""The ugsep command: exit statuses, one-line errors, JSON for scripts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from engines.backends.table import find_backend
from engines.build.sources import Sources
from engines.bundle.manifest import read_manifest, write_manifest
from engines.cli.main import main
from engines.cli.telemetry import TELEMETRY_OFF


def run(*args: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in args])


def one_line_error(result: Result) -> str:
    assert result.exit_code == 2, result.output
    lines = [line for line in result.stderr.splitlines() if line]
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return lines[0]


def test_an_unknown_model_names_the_nearest() -> None:
    assert "unknown model 'zenit', did you mean 'zenith'" in one_line_error(run("build", "zenit", "--init", "random"))


def test_an_unknown_setting_of_a_section_names_the_nearest() -> None:
    found = one_line_error(run("build", "zenith", "--init", "random", "--set", "serving.bakend=openvino"))
    assert "zenith.yaml: serving: unknown setting 'bakend', did you mean 'backend'?" in found


def test_a_backend_that_is_not_here_says_what_is_missing_whatever_the_precision(tmp_path: Path) -> None:
    here = find_backend("tensorrt").probe()
    if here.can_build:
        pytest.skip("TensorRT and a GPU are here")
    result = run("build", "zenith", "--init", "random", "--backend", "tensorrt", "--out", tmp_path / "out")
    assert "backend 'tensorrt' cannot build here: " in one_line_error(result)
    assert here.reason[:60] in result.stderr


def test_an_option_that_was_renamed_names_the_new_one(tmp_path: Path) -> None:
    found = one_line_error(run("bench", tmp_path, "--peers", "none"))
    assert found.startswith("error: unknown option '--peers', did you mean '--baselines'?")


def test_no_checkpoint_is_refused() -> None:
    assert "pass --init random" in one_line_error(run("build", "zenith"))


def test_a_missing_checkpoint_is_refused(tmp_path: Path) -> None:
    result = run("build", "zenith", "--checkpoint", tmp_path / "none", "--out", tmp_path / "out")
    assert "config.json is missing" in one_line_error(result)
    assert not (tmp_path / "out").exists()


def test_a_truncated_checkpoint_is_refused(tiny_sources: Sources, tmp_path: Path) -> None:
    assert tiny_sources.checkpoint is not None
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((tiny_sources.checkpoint / name).read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    result = run("build", "zenith", "--checkpoint", tmp_path, "--out", tmp_path / "out")
    assert "truncated or not safetensors" in one_line_error(result)
    assert not (tmp_path / "out").exists()


def test_an_output_that_is_a_file_is_refused(tiny_sources: Sources, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("in the way")
    result = run("build", "zenith", "--checkpoint", tiny_sources.checkpoint, "--out", tmp_path / "out")
    assert "a file is in the way" in one_line_error(result)


def test_verify_accepts_a_sound_bundle_and_refuses_a_flipped_byte(bundle: Path) -> None:
    assert run("verify", bundle).exit_code == 0
    path = bundle / "onnx" / "full.onnx"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert "sha256" in one_line_error(run("verify", bundle))


def test_validate_prints_json_and_passes(built_bundle: Path, tiny_sources: Sources) -> None:
    result = run("validate", built_bundle, "--requests", tiny_sources.requests[0], "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["passed"] is True
    assert {t["name"] for t in found["targets"]} >= {"split max |score difference|", "quantized SQNR dB"}


def test_validate_fails_with_status_1_and_names_value_and_bound(
    bundle: Path, tiny_sources: Sources, tmp_path: Path
) -> None:
    # A recipe is hashed like every file, so the bound is tightened as a build would, through the manifest.
    recipe = bundle / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("sqnr_db: 25.0", "sqnr_db: 150.0"))
    write_manifest(bundle, read_manifest(bundle))
    junit = tmp_path / "gates.xml"
    result = run("validate", bundle, "--requests", tiny_sources.requests[0], "--junit", junit)
    assert result.exit_code == 1
    assert ">= 150 FAILED" in result.stderr
    assert 'failures="1"' in junit.read_text()


@pytest.mark.parametrize("args", [(), ("--requests", "x.parquet", "--synthetic")])
def test_validate_wants_requests_or_synthetic(built_bundle: Path, args: tuple[str, ...]) -> None:
    assert "--synthetic" in one_line_error(run("validate", built_bundle, *args))


FACTORY = """
import torch
from torch import nn


class Ranker(nn.Module):
    def __init__(self):
        super().__init__()
        self.user = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 24))
        self.items = nn.Embedding(50, 8)
        self.meet = nn.Linear(24 + 8, 16)
        self.out = nn.Linear(16, 1)

    def forward(self, profile, item):
        both = torch.cat([self.user(profile), self.items(item)], -1)
        return {"click": self.out(torch.relu(self.meet(both))).squeeze(-1)}


def factory():
    torch.manual_seed(3)
    return Ranker().eval(), {"profile": torch.randn(4, 20), "item": torch.randint(0, 50, (4,))}
"""
LOOSE = "model: any\nserving: {candidates: [1, 5], compile_for: []}\ngates: {kendall_tau: 0.8, sqnr_db: 25.0}\n"


@pytest.mark.slow
def test_any_module_builds_and_serves(tmp_path: Path) -> None:
    import numpy as np

    from engines import Ranker

    (tmp_path / "mine.py").write_text(FACTORY)
    (tmp_path / "loose.yaml").write_text(LOOSE)
    args = ("build", f"{tmp_path / 'mine.py'}:factory", "--user", "profile", "--item", "item", "--no-cache",
            "--recipe", tmp_path / "loose.yaml", "--out", tmp_path / "out", "--json")  # fmt: skip
    result = run(*args)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["passed"] is True
    assert report["split"]["hoisted"], "the user columns of 'meet' are worth hoisting"
    rng = np.random.default_rng(0)
    user = {"profile": rng.standard_normal((1, 20)).astype(np.float32)}
    scores = Ranker.from_bundle(tmp_path / "out").score(user, {"item": rng.integers(0, 50, 5)})
    assert scores["click"].shape == (5,)
    again = run(*args[:-1])
    assert "up to date, nothing changed" in again.stdout


def test_a_factory_needs_its_sides(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(FACTORY)
    assert "pass --user" in one_line_error(run("build", f"{tmp_path / 'mine.py'}:factory"))
    message = one_line_error(run("build", f"{tmp_path / 'mine.py'}:factry", "--user", "profile", "--item", "item"))
    assert "no function 'factry', did you mean 'factory'" in message
    assert "apply only to factories" in one_line_error(run("build", "zenith", "--init", "random", "--user", "a"))


@pytest.mark.parametrize("module", ["engines.cli.main", "engines.cli.quant.main"])
def test_commands_leave_no_trace_of_onnxruntime_s_telemetry(module: str, tmp_path: Path) -> None:
    script = f"from {module} import main; main(['inspect', '--help'], standalone_mode=False); import onnxruntime"
    decided = {TELEMETRY_OFF, "CI"}  # it is disabled in CI anyway
    environment = {name: value for name, value in os.environ.items() if name not in decided}
    environment |= {"XDG_CACHE_HOME": str(tmp_path), "HOME": str(tmp_path)}
    command = [sys.executable, "-c", script]
    root = Path(__file__).parents[3]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.rglob("onnxruntime*"))
