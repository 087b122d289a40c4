"""The process of ``run.py``: a job on standard input, its outcome as lines on standard output."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
import traceback
from pathlib import Path
from typing import Any, TextIO

from engines.verify.checks import Check
from engines.verify.validate import validate
from graphs.base.errors import GateFailed, UgsepError, first_line
from graphs.base.progress import Progress

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Read a job, run it, and write lines: progress while it runs, then checks, an error or a failed gate."""
    if sys.platform == "linux":  # end with the caller, however that ends
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what native code prints does not mix with the answer
    with answer:
        _say(answer, _outcome(json.load(sys.stdin), answer))


def _outcome(job: dict[str, Any], answer: TextIO) -> dict[str, Any]:
    def tell(event: Progress) -> None:
        _say(answer, {"progress": [event.step, event.done, event.total, event.note]})

    bundle = Path(job["bundle"])
    worst = None if job["worst"] is None else Path(job["worst"])
    try:
        found = validate(bundle, [Path(path) for path in job["requests"]], job["seed"], tell, worst)
    except GateFailed as error:
        return {"failed": str(error)}
    except UgsepError as error:
        return {"error": str(error), "traceback": traceback.format_exc()}
    except OSError as error:
        where = f": '{error.filename}'" if error.filename else ""
        text = (
            f"{error.strerror or first_line(error)}{where}; check the path, its permissions and the free disk space"
        )
        return {"error": text, "traceback": traceback.format_exc()}
    except Exception as error:  # libraries raise anything for a graph that makes no sense
        why = f"{type(error).__name__}: {first_line(error)}"
        text = f"{bundle}: its graphs cannot be checked ({why:.300}); do not use this bundle, or build it again"
        return {"error": text, "traceback": traceback.format_exc()}
    return {"checks": [_plain(check) for check in found.checks]}


def _plain(check: Check) -> list[str]:
    # Hexadecimal: exact, and NaN and infinities have no place in JSON.
    return [check.name, float(check.value).hex(), float(check.bound).hex(), check.relation]


def _say(answer: TextIO, message: dict[str, Any]) -> None:
    answer.write(json.dumps(message) + "\n")
    answer.flush()


if __name__ == "__main__":
    main()
