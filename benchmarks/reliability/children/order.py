"""What a forked process is to run, and under which conditions: one line of JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Trap:
    """A signal to the process group, sent before one of the child's file operations.

    Args:
        root: operations on paths below this folder count, and those on names relative to an open folder.
        counter: a file that holds the number of operations so far.
        operation: the first is 1; 0: none, they are only counted.
        signal: which signal; ``SIGKILL`` by default.
    """

    root: Path
    counter: Path
    operation: int = 0
    signal: int = 9


@dataclass(frozen=True)
class Order:
    """A command to run in a fork.

    Args:
        argv: ``ugsep`` or ``quant``, and its arguments.
        cwd: working directory.
        output: file that stdout and stderr are written to, stdout by ``output`` itself, stderr with ``.err`` added.
        environ: variables to set; None removes one.
        limits: names of ``resource`` limits without ``RLIMIT_``, and their values.
        umask: of the process.
        uid: user and group to become, with no other groups; needs root.
        remove_cwd: remove the working directory before the command starts.
        refuse_network: every connection to another address than this machine's raises ``OSError``.
        trap: a signal at a file operation.
    """

    argv: tuple[str, ...]
    cwd: Path
    output: Path
    environ: Mapping[str, str | None] = field(default_factory=dict)
    limits: Mapping[str, int] = field(default_factory=dict)
    umask: int | None = None
    uid: int | None = None
    remove_cwd: bool = False
    refuse_network: bool = False
    trap: Trap | None = None

    def to_line(self) -> str:
        """Return the order as a line of JSON."""
        return json.dumps(dataclasses.asdict(self), default=str)

    @staticmethod
    def from_line(line: str) -> Order:
        """Read what ``to_line`` wrote."""
        read: dict[str, Any] = json.loads(line)
        trap = read.pop("trap")
        cwd, output = Path(read.pop("cwd")), Path(read.pop("output"))
        found = Trap(**{**trap, "root": Path(trap["root"]), "counter": Path(trap["counter"])}) if trap else None
        return Order(tuple(read.pop("argv")), cwd, output, trap=found, **read)
