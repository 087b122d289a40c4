from __future__ import annotations

import os
import subprocess
import sys

RUN = """
import os, runpy, sys

class Finder:
    def find_spec(self, name, *_):
        if name == "benchmarks.reliability.commands":
            print(os.environ.get("ORT_DISABLE_TELEMETRY"), "onnxruntime" in sys.modules)
            raise KeyboardInterrupt

sys.meta_path.insert(0, Finder())
runpy.run_module("benchmarks.reliability", run_name="__main__")
"""


def test_ctrl_c_during_the_imports_is_one_line_and_telemetry_is_off_by_then() -> None:
    environ = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    done = subprocess.run([sys.executable, "-c", RUN], capture_output=True, text=True, check=False, env=environ)
    assert (done.returncode, done.stdout, done.stderr) == (130, "1 False\n", "aborted\n")
