"""Why a model cannot be traced, in one line with its source location."""

from __future__ import annotations

import io
import logging
import re
import sysconfig
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path

import torch
from torch import fx

from graphs.base.errors import UgsepError, printable_line

TORCH_FILES = str(Path(torch.__file__).parent)
_PYTHON_FILES = sysconfig.get_path("stdlib")
_TRACE_FILES = str(Path(__file__).parent)
_COLORS = re.compile(r"\x1b\[[0-9;]*m")
_LONGEST, _LONGEST_CODE = 200, 80  # characters of a message and of a line of code
NO_DATA_IN_CONTROL = "rewrite that line without control flow or shapes that depend on data"


def readable(error: Exception) -> str:
    """Return the first sentence of an error's message, and the line of the model that caused it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reasons = (line for line in lines if not line.startswith(("File", "The following call")))
    reason = next(reasons, type(error).__name__)
    reason = printable_line(re.split(r"(?<=\w)\. (?=[A-Z])", _COLORS.sub("", reason), maxsplit=1)[0])[:_LONGEST]
    reason = re.sub(r" \((unhinted|Size-like symbols):.*$", "", reason)
    reason = re.sub(r"\b(zu[fi]|u)\d+\b", "a value of a tensor", reason)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if is_model_code(f.filename)]
    at = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno} `{_shown(frames[-1].line)}`" if frames else ""
    return f"{reason.rstrip('.')}{at}"


def steps_through_packed_sequence(error: Exception) -> bool:
    """Return whether a recurrence that was given a PackedSequence raised the error."""
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    inside = (f for f in frames if f.f_code.co_filename.endswith(str(Path("nn", "modules", "rnn.py"))))
    return any(f.f_locals.get("batch_sizes") is not None for f in inside)


def _shown(line: str | None) -> str:
    line = printable_line(line or "")
    return line if len(line) <= _LONGEST_CODE else f"{line[:_LONGEST_CODE]}..."


@contextmanager
def quiet() -> Iterator[None]:
    """Keep torch.export's logs, prints and warnings off the terminal; errors are still raised."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logging.disable(disabled)


def check_any_number_of_rows(graph: fx.Graph) -> None:
    """Reject a model that torch.export could trace only for some numbers of rows.

    Raises:
        UgsepError: the batch axis became a fixed number, or the model's code branches on the number of rows.
    """
    for node in graph.nodes:
        if node.op != "placeholder" or not node.users:
            continue
        rows = node.meta["val"].shape[0]
        environment = rows.node.shape_env if isinstance(rows, torch.SymInt) else None
        for guard in environment.guards if environment is not None else ():
            frame = guard.sloc.framework_loc
            file = getattr(frame, "filename", "")
            # Comparing the row counts of two tensors is harmless: they are equal.
            if is_model_code(file) and len(guard.expr.free_symbols) == 1:
                raise UgsepError(
                    f"the model branches on the number of rows at {Path(file).name}:{frame.lineno}; "
                    "a row must get the same score in any batch"
                )
        if not isinstance(rows, torch.SymInt) or not rows.node.expr.free_symbols:
            raise UgsepError(
                f"the model works only for {rows} rows, the number it was traced with: a fixed size or a reshape "
                f"removes the batch axis of input '{node.target}'; make forward accept any number of rows"
            )


def is_model_code(file: str) -> bool:
    """Return whether a file is neither PyTorch's nor Python's own, nor part of the tracer."""
    own = not file.startswith((TORCH_FILES, _TRACE_FILES, "<"))
    return bool(file) and own and (not file.startswith(_PYTHON_FILES) or "site-packages" in file)
