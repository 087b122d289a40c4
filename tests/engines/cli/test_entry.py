from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from engines.cli import entry

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("command", ["ugsep", "quant"])
def test_ctrl_c_during_the_imports_is_a_line_and_130(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib, "import_module", interrupted)
    with pytest.raises(SystemExit) as ended:
        getattr(entry, command)()
    assert ended.value.code == 130
    assert capsys.readouterr().err == "aborted\n"


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    code = "import sys; from engines.cli.entry import ugsep; ugsep()"
    command = ["bash", "-c", script, "bash", sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


def test_a_closed_stdout_is_no_error() -> None:
    done = run('exec "$@" >&-', "models")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("arguments", [["--help"], ["verify", "--help"], ["models"]])
def test_a_full_stdout_is_one_line(arguments: list[str]) -> None:
    done = run('exec "$@" >/dev/full', *arguments)
    assert done.returncode == 2
    assert done.stderr == "error: No space left on device; check the path, its permissions and the free disk space\n"
