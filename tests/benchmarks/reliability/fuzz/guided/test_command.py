from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from benchmarks.reliability.commands import main


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["coverage", *arguments])


def test_an_input_is_replayed_with_the_parser_of_its_target(tmp_path: Path) -> None:
    (tmp_path / "input").write_bytes(b"default: int9")
    done = run("--target", "policy", "--replay", str(tmp_path / "input"))
    assert done.exit_code == 0
    assert done.stdout.startswith("policy: refused ")
    assert "default" in done.stdout
    as_json = run("--target", "policy", "--replay", str(tmp_path / "input"), "--json")
    assert json.loads(as_json.stdout)["result"] == "refused"


def test_options_that_exclude_each_other(tmp_path: Path) -> None:
    assert run("--replay", str(tmp_path)).exit_code == 2
    assert "no such file" in run("--target", "policy", "--replay", str(tmp_path / "none")).stderr
    assert "unknown target 'nothing'" in run("--target", "nothing").stderr


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is not installed: ugsep[fuzz]")
def test_figures_as_json(tmp_path: Path) -> None:
    done = run("--target", "report", "--inputs", "30", "--json", "--work", str(tmp_path))
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["report"]["inputs"] == 30
    assert "exclude each other" in run("--inputs", "3", "--minutes", "1", "--work", str(tmp_path)).stderr
