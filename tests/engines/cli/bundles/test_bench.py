"""The command ``ugsep bench``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from engines.cli.main import main


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--candidates", "1,x"], "--candidates is '1,x'; pass comma-separated integers"),
        (["--candidates", "0,4"], "--candidates contains 0"),
        (["--threads", "0"], "--threads contains 0"),
        (["--rounds", "0"], "rounds 0: give at least 1"),
        (["--baselines", "tensorflow"], "unknown baseline 'tensorflow'"),
        (["--random", "--checkpoint", "somewhere"], "mutually exclusive"),
        (["--candidates", "65", "--baselines", "none"], "N = 65 is beyond the 64 candidates"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(built_bundle: Path, arguments: list[str], message: str) -> None:
    outcome = CliRunner().invoke(main, ["bench", str(built_bundle), *arguments])
    assert outcome.exit_code == 2
    lines = [line for line in outcome.stderr.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    assert message in lines[0]


def test_the_command_writes_its_files_and_prints_json(built_bundle: Path, tmp_path: Path) -> None:
    outcome = CliRunner().invoke(
        main,
        ["bench", str(built_bundle), "--baselines", "onnxruntime", "--candidates", "2", "--threads", "1",
         "--rounds", "2",
         "--no-memory", "--out", str(tmp_path / "out"), "--markdown", str(tmp_path / "b.md"), "--json"],
    )  # fmt: skip
    assert outcome.exit_code == 0, outcome.stderr
    assert json.loads(outcome.stdout) == json.loads((tmp_path / "out" / "bench.json").read_text())
    assert "<!-- begin tiny -->" in (tmp_path / "b.md").read_text()
