from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]

RUN = """
import os, runpy, sys

class Finder:
    def find_spec(self, name, *_):
        if name == "benchmarks.reliability.commands":
            print(os.environ.get("ORT_DISABLE_TELEMETRY"), "onnxruntime" in sys.modules)
            exec("raise KeyboardInterrupt")  # as in a class of data that is just being made

sys.meta_path.insert(0, Finder())
runpy.run_module("benchmarks.reliability", run_name="__main__")
"""


def test_ctrl_c_during_the_imports_is_one_line_and_telemetry_is_off_by_then(tmp_path: Path) -> None:
    environ = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    # Of a module, as in 'python -m': CPython ends those by the signal if it remembers an interrupt.
    (tmp_path / "interrupted.py").write_text(RUN)
    environ["PYTHONPATH"] = os.pathsep.join([str(tmp_path), str(ROOT)])
    command = [sys.executable, "-m", "interrupted"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environ)
    assert (done.returncode, done.stdout, done.stderr) == (130, "1 False\n", "aborted\n")
