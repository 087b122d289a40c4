from __future__ import annotations

import subprocess
import sys

INTERRUPTED = """
import runpy, sys

class Finder:
    def find_spec(self, name, *_):
        if name == "benchmarks.reliability.commands":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Finder())
runpy.run_module("benchmarks.reliability", run_name="__main__")
"""


def test_ctrl_c_during_the_imports_is_one_line() -> None:
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "aborted\n")
