"""What a parser may do with any input: return, or refuse it in one printable line."""

from __future__ import annotations

import traceback
from pathlib import Path

from benchmarks.reliability.fuzz.guided.parser import Parser
from benchmarks.reliability.fuzz.judge import LONGEST, Verdict
from graphs.base.errors import UgsepError, printable_line

__all__ = ["judged"]


def judged(parser: Parser, data: bytes) -> Verdict:
    """Give an input to a parser and judge what it does; Ctrl-C passes through."""
    try:
        parser.parse(data)
    except UgsepError as error:
        line = str(error)
        if not line or not line.isprintable() or len(line) > LONGEST:
            return Verdict("defect", "not one printable line", ascii(line)[1:301])
        return Verdict("refused", detail=line)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # panics of Rust are no Exception
        return Verdict("defect", f"{type(error).__name__} in {_place(error)}", printable_line(str(error))[:300])
    return Verdict("ok")


def _place(error: BaseException) -> str:
    """Return the last function of this project that an exception went through; the first frame is ours."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__)[1:] if _ours(frame.filename)]
    return f"{Path(frames[-1].filename).name} {frames[-1].name}" if frames else "?"


def _ours(file: str) -> bool:
    return file.startswith("/") and "/site-packages/" not in file and "/lib/python" not in file
