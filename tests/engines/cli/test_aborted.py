from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from engines.cli.aborted import importing

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


def test_ctrl_c_while_an_extension_is_loaded_ends_at_once(tmp_path: Path) -> None:
    """What an extension does with the exception is its own: this one swallows it, others end by SIGABRT."""
    (tmp_path / "extension.py").write_text(
        "import signal\n"
        "try:\n"
        "    signal.raise_signal(signal.SIGINT)\n"
        "    signal.pause()\n"
        "except KeyboardInterrupt:\n"
        "    print('swallowed')\n"
    )
    code = "from engines.cli.aborted import importing\nwith importing():\n    import extension"
    environ = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environ)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "aborted\n")


def test_ctrl_c_after_the_imports_is_an_exception_again() -> None:
    with importing():
        assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
