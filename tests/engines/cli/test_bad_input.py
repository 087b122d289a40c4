"""Bad files and options: one line that says what, where and how to fix it, exit status 2, and nothing written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.engines.cli.test_main import one_line_error, run

FEATURE = '{"name": "a", "side": "user", "kind": "dense"}'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "features.json' does not exist"),
        (b"{", "features.json': not valid JSON"),
        (b"\xff\xfe\x00", "features.json': not valid JSON"),
        (b"[]", "features.json': expected a mapping of settings, got a list"),
        (b'{"tasks": ["like"]}', "features.json': 'features' is missing"),
        (b'{"tasks": 3, "features": []}', "features.json': tasks is 3, not a list"),
        (b'{"tasks": ["like"], "features": ["a"]}', 'features.json\': features[0] is "a", not an object'),
        (f'{{"tasks": ["a"], "tasks": [], "features": [{FEATURE}]}}'.encode(), "'tasks' is given twice"),
        (f'{{"tasks": ["a"], "features": [{FEATURE}]}}'.encode(), "features has none of side 'item'"),
    ],
)
@pytest.mark.parametrize(
    "command", [("build", "zenith", "--init", "random", "--no-cache"), ("models",), ("random-checkpoint", "zenith")]
)
def test_a_bad_features_file(command: tuple[str, ...], content: bytes | None, message: str, tmp_path: Path) -> None:
    path, out = tmp_path / "features.json", tmp_path / "out"
    if content is not None:
        path.write_bytes(content)
    target = () if command == ("models",) else ("--out", out)
    assert message in one_line_error(run(*command, "--features", path, *target))
    assert not out.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("threads=0", "serving.threads is 0; it must be from 1 to"),
        ("threads=-3", "serving.threads is -3; it must be from 1 to"),
        ("threads=99999", "it must be from 1 to 4096"),
        ("threads=99999999999999999999", "serving.threads is 99999999999999999999, which is out of range"),
        (f"threads={10**400}", "serving.threads is an integer of 1329 bits, which is out of range"),
        ("candidates=[]", "serving.candidates is empty"),
        ("candidates=[1, 0]", "serving.candidates[1] is 0"),
        ("max_candidates=0", "serving.max_candidates is 0"),
        ("max_users=-1", "serving.max_users is -1"),
    ],
)
def test_a_serving_setting_out_of_range(change: str, message: str, tmp_path: Path) -> None:
    found = run("build", "zenith", "--init", "random", "--set", f"serving.{change}", "--out", tmp_path / "out")
    assert message in one_line_error(found)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["build", "validate", "bisect", "bench", "random-checkpoint"])
def test_a_negative_seed(command: str, tmp_path: Path) -> None:
    assert "'--seed': -1 is not in the range" in one_line_error(run(command, tmp_path, "--seed", -1))


@pytest.mark.parametrize("command", ["stream", "build"])
def test_a_missing_checkpoint_names_commands_that_write_one(command: str, tmp_path: Path) -> None:
    found = one_line_error(run(command, "zenith", "--checkpoint", tmp_path / "none", "--out", tmp_path / "out"))
    assert "make checkpoint" in found
    assert "ugsep random-checkpoint" in found
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("module", ["engines.cli.entry", "engines.cli.main", "engines.cli.quant.main"])
def test_a_module_of_a_command_runs(module: str) -> None:
    done = subprocess.run([sys.executable, "-m", module, "--help"], capture_output=True, text=True, check=True)
    assert "Usage:" in done.stdout
