"""What a run of a command may look like from outside, whatever it was given."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from benchmarks.reliability.fuzz.worker import Ended

__all__ = ["Verdict", "judge", "shown"]

LONGEST = 1_100  # characters of a message: 1,000, and "error: " and the command to ask for help around it
_PROGRESS = re.compile(r"[^\x00-\x1f:]+ \d+(/\d+)?( [^\x00-\x1f]*)?")
_AFTER_A_GATE = ("reproduce: ", "worst rows: ")  # what 'ugsep validate' adds
_FRAME = re.compile(r'File "([^"]+)", line (\d+), in (\S+)')


@dataclass(frozen=True)
class Verdict:
    """``ok`` and ``refused`` are as documented; ``kind`` names a defect, ``detail`` shows it in one line."""

    result: Literal["ok", "refused", "defect"]
    kind: str = ""
    detail: str = ""


def judge(ended: Ended, command: Sequence[str]) -> Verdict:
    """Judge one run: 0 without a word on stderr but progress, or 1 or 2 with one printable line of error."""
    stderr = ended.stderr.decode("utf-8", "replace")
    typed = shown(command)
    lines = stderr.splitlines()
    last = ascii(lines[-1] if lines else "")[1:-1][:300]
    if ended.status is None:
        return Verdict("defect", "hang", f"{typed}: {last}")
    if ended.status < 0:
        return Verdict("defect", f"signal {-ended.status}", f"{typed}: {last}")
    text = ended.stdout.decode("utf-8", "replace") + stderr
    if "Traceback (most recent call last)" in text:
        return Verdict("defect", f"traceback: {_raised(lines)}", f"{typed}: {last}")
    if ended.status not in (0, 1, 2):
        return Verdict("defect", f"exit status {ended.status}", f"{typed}: {last}")
    odd = sorted({c for c in text if not c.isprintable() and c != "\n"})
    if odd:
        return Verdict("defect", f"not printable: {ascii(odd[0])[1:-1]}", f"{typed}: {last}")
    said = [line for line in stderr.split("\n") if line and not _PROGRESS.fullmatch(line)]
    if ended.status == 1:
        said = [line for line in said if not line.startswith(_AFTER_A_GATE)]
    if ended.status == 0:
        return Verdict("ok") if not said else Verdict("defect", "noise on success", f"{typed}: {said[0][:300]}")
    if len(said) != 1 or not said[0].startswith("error: "):
        return Verdict("defect", "not one line of error", f"{typed}: {ascii(said[:3])[:400]}")
    if len(said[0]) > LONGEST:
        return Verdict("defect", "long message", f"{typed}: {len(said[0])} characters: {said[0][:150]}")
    return Verdict("refused", detail=said[0])


def shown(command: Sequence[str]) -> str:
    """Return a command line in printable ASCII, long arguments cut."""
    return " ".join(ascii(part)[1:-1] if len(part) < 300 else f"{ascii(part[:200])[1:-1]}..." for part in command)


def _raised(lines: Sequence[str]) -> str:
    """Return the class of an exception and the last function of this project that it went through."""
    frames = [found for line in lines if (found := _FRAME.search(line))]
    ours = [
        f"{f[1].rsplit('/', 1)[-1]} {f[3]}" for f in frames if "/site-packages/" not in f[1] and "/lib/" not in f[1]
    ]
    raised = next((line.split(":")[0] for line in reversed(lines) if line and line[0] not in " \t|+"), "?")
    return f"{raised[:60]} in {ours[-1] if ours else '?'}"
