from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from engines.backends.openvino.library import core

pytest.importorskip("openvino", reason="pip install 'ugsep[openvino]'")

SIGNAL_AFTER_RELEASE = """
import os, signal, threading
import numpy as np
import openvino as ov
import openvino.opset13 as ops
from engines.backends.openvino.library import core

x = ops.parameter([2, 3], np.float32)
held = [core().compile_model(ov.Model([ops.relu(x)], [x], "m"), "CPU")]
releasing = threading.Thread(target=held.clear)
releasing.start()
releasing.join()
signal.signal(signal.SIGTERM, lambda number, frame: print("drains", flush=True))
os.kill(os.getpid(), signal.SIGTERM)
"""


def test_all_share_one_core() -> None:
    assert core() is core()


def test_a_signal_is_handled_after_another_thread_released_the_last_engine() -> None:
    # With a core of its own for each engine, the signal found a stack that was unmapped: status -11.
    ended = subprocess.run(
        [sys.executable, "-c", SIGNAL_AFTER_RELEASE], capture_output=True, text=True, timeout=100, check=False
    )
    assert (ended.returncode, ended.stdout) == (0, "drains\n"), f"{signal.SIGSEGV=}: {ended.stderr}"
