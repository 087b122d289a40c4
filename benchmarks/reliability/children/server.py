"""A process that has everything imported and forks commands: ``python -m benchmarks.reliability.children.server``.

Each line on stdin is an order, or ``{"wait": PID}``; each is answered by a line: the process id, or how it ended.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import resource
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from benchmarks.reliability.children.order import Order
from benchmarks.reliability.children.traps import no_network, set_trap
from engines.cli import entry
from engines.cli.commands import COMMANDS

_USED_LATER = (
    "torch torch._dynamo torch.export torch.onnx torch.onnx._internal.exporter onnxruntime onnx onnx_ir onnxscript "
    "pyarrow.parquet safetensors.torch scipy.stats sympy jinja2 matplotlib.pyplot engines.cli.main "
    "engines.cli.quant.main engines.build.pipeline engines.build.streaming engines.serve.server "
    "engines.verify.validate benchmarks.reliability.kill.steps"
).split()


def main() -> None:
    """Import, then fork what is asked for until stdin ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.set_inheritable(answers.fileno(), False)
    for module in (*(command.module for command in COMMANDS.values()), *_USED_LATER):
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # a collection in a child would copy every page
    print("ready", file=answers)
    for line in sys.stdin:
        if "wait" in (order := json.loads(line)):
            _, status = os.waitpid(order["wait"], 0)
            print(os.waitstatus_to_exitcode(status), file=answers)
            continue
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # in the child, until its command starts
        pid = os.fork()
        if pid == 0:
            answers.close()
            _end(_become(Order.from_line(line)))
        os.setpgid(pid, pid)  # here too: whoever reads the answer may send its group a signal
        print(pid, file=answers)


def _become(order: Order) -> int:
    """Set up this process as ordered, run the command in it, and return its exit status."""
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _redirect(order.output)
    os.chdir(order.cwd)
    for name, value in order.environ.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    if order.umask is not None:
        os.umask(order.umask)
    if order.trap is not None:
        sys.addaudithook(set_trap(order.trap))
    if order.refuse_network:
        sys.addaudithook(no_network)
    if order.uid is not None:
        os.setgroups([])
        os.setgid(order.uid)
        os.setuid(order.uid)
    if order.remove_cwd:
        shutil.rmtree(order.cwd)
    for name, limit in order.limits.items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (limit, limit))
    sys.argv = list(order.argv)
    sys.modules["__main__"].__package__ = ""  # what click makes the name of the program of
    program = _program(order.argv[0])
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        program()
    except SystemExit as ending:
        return ending.code if isinstance(ending.code, int) else int(ending.code is not None)
    except KeyboardInterrupt:  # between two lines here: a console script answers later ones itself
        print("aborted", file=sys.stderr)
        return 130
    except BaseException:
        sys.excepthook(*sys.exc_info())  # the traceback that an interpreter would print
        return 1
    return 0


def _program(name: str) -> Callable[[], object]:
    """Return a console script, or ``main`` of a module."""
    scripts = {"ugsep": entry.ugsep, "quant": entry.quant}
    return scripts[name] if name in scripts else importlib.import_module(name).main


def _end(status: int) -> NoReturn:
    """End as an interpreter does, without a second of taking apart every module that is imported."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            status = status or 120  # as CPython
    os._exit(status)


def _redirect(output: Path) -> None:
    """Point stdin to nothing, and stdout and stderr to files."""
    for number, path, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, str(output), os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
        (2, f"{output}.err", os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
    ):
        handle = os.open(path, flags, 0o644)
        os.dup2(handle, number)
        os.close(handle)


if __name__ == "__main__":
    main()
