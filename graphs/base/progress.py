"""Progress of long steps: a small event, a callback type, and a renderer for terminals and logs."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress

from graphs.base.errors import printable_line

SECONDS_BETWEEN_LINES = 5.0


@dataclass(frozen=True)
class Progress:
    """``done`` of ``total`` items of ``step`` are finished.

    ``total`` is None if unknown in advance; ``note`` names the current item (a file, a weight).
    """

    step: str
    done: int
    total: int | None = None
    note: str = ""


ProgressCallback = Callable[[Progress], None]


def silent(event: Progress) -> None:
    """Drop the event: the default of every function that reports progress."""


@contextmanager
def show_progress(stream: IO[str] | None = None) -> Iterator[ProgressCallback]:
    """Yield a callback that draws one bar per step on a terminal and plain lines elsewhere.

    ``stream`` is stderr by default, so that stdout stays clean for ``--json``. Plain lines are written at the
    start and the end of a step, and at most every five seconds in between.
    """
    out = stream if stream is not None else sys.stderr
    console = Console(file=out)
    if console.is_terminal:
        with _bars(console) as callback:
            yield callback
    else:
        yield _lines(out)


@contextmanager
def _bars(console: Console) -> Iterator[ProgressCallback]:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with RichProgress(*columns, console=console) as bars:
        tasks = {}

        def callback(event: Progress) -> None:
            if event.step not in tasks:
                tasks[event.step] = bars.add_task(event.step, total=event.total, note="")
            note = printable_line(event.note)  # weights and files are named by others
            bars.update(tasks[event.step], completed=event.done, total=event.total, note=note)

        yield callback


def _lines(out: IO[str]) -> ProgressCallback:
    written: dict[str, float] = {}  # step -> when its last line was written

    def callback(event: Progress) -> None:
        now = time.monotonic()
        finished = event.total is not None and event.done >= event.total
        if not finished and now - written.get(event.step, float("-inf")) < SECONDS_BETWEEN_LINES:
            return
        written[event.step] = now
        count = f"{event.done}" if event.total is None else f"{event.done}/{event.total}"
        out.write(printable_line(f"{event.step} {count} {event.note}".rstrip()) + "\n")
        out.flush()

    return callback
