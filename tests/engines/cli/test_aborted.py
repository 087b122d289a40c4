from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PROGRAMS = {
    "exit_aborted": "exit_aborted()",
    "a console script": "entry.importlib.import_module = lambda _: exec('raise KeyboardInterrupt'); entry.ugsep()",
    "a command": "Command('a', callback=lambda: exec('raise KeyboardInterrupt')).main()",
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_an_interrupt_that_left_a_text_is_status_130_and_no_signal(program: str, tmp_path: Path) -> None:
    (tmp_path / "interrupted.py").write_text(
        "from engines.cli import entry\n"
        "from engines.cli.aborted import exit_aborted\n"
        "from engines.cli.group import Command\n"
        "try:\n"
        "    exec('raise KeyboardInterrupt')\n"
        "except KeyboardInterrupt:\n"
        f"    {PROGRAMS[program]}\n"
    )
    environ = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    command = [sys.executable, "-m", "interrupted"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environ)
    assert (done.returncode, done.stderr.strip()) == (130, "aborted")
