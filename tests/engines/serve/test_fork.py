"""A process forked while threads score gets an exception, not a hang."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np

from tests import tiny

ROOT = Path(__file__).parents[3]
FORK = """
import os, sys, threading
import numpy as np
from engines import Ranker
from engines.serve.errors import RankerClosed
given = np.load(sys.argv[2])
user = {k[5:]: given[k] for k in given.files if k.startswith("user.")}
items = {k[5:]: given[k] for k in given.files if k.startswith("item.")}
ranker = Ranker.from_bundle(sys.argv[1], threads=2)
stop = threading.Event()
def score():
    while not stop.is_set():
        ranker.forget_users()
        ranker.score(user, items)
        ranker.cache_info()
threads = [threading.Thread(target=score) for _ in range(3)]
for thread in threads:
    thread.start()
calls = [
    lambda: ranker.score(user, items),
    lambda: ranker.user_state(user),
    lambda: ranker.warm(user),
    ranker.cache_info,
    ranker.reset_cache_info,
    ranker.forget_users,
    lambda: ranker.recent_users(1),
    lambda: ranker.adopt_states(ranker),
]
told = []
for number in range(24):
    read, write = os.pipe()
    if os.fork() == 0:
        try:
            calls[number % len(calls)]()
            text = "answered"
        except RankerClosed as error:
            text = str(error)
        ranker.close()
        os.write(write, text.encode())
        os._exit(0)
    os.close(write)
    told.append(os.read(read, 1000).decode())
    os.close(read)
    os.wait()
stop.set()
for thread in threads:
    thread.join()
ranker.score(user, items)
print(sorted(set(told)))
"""


def test_a_forked_process_gets_an_exception(built_bundle: Path, tmp_path: Path) -> None:
    user, items = tiny.user_and_items(5)
    given = {f"user.{k}": v for k, v in user.items()} | {f"item.{k}": v for k, v in items.items()}
    np.savez(tmp_path / "given.npz", **given)
    command = [sys.executable, "-W", "ignore", "-c", FORK, str(built_bundle), str(tmp_path / "given.npz")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == (
        "['the ranker was loaded before this process was forked; load the bundle in each worker']"
    )


EXIT = """
import os, sys
from engines import Ranker
ranker = Ranker.from_bundle(sys.argv[1], threads=2)
child = os.fork()
if child == 0:
    sys.exit(7)  # not os._exit: the interpreter and the runtime clean up
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_forked_process_can_exit(built_bundle: Path) -> None:
    """The runtime's threads are only in the parent; to join them in the child took for ever."""
    command = [sys.executable, "-W", "ignore", "-c", EXIT, str(built_bundle)]
    environment = {**os.environ, "ORT_DISABLE_TELEMETRY": "1"}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            told, _ = process.communicate(timeout=120)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # a child that hangs outlives its parent
    assert told.strip() == "7"
