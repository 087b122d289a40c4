"""The moment after which nobody waits for an answer, checked between the steps that make it."""

from __future__ import annotations

import time

from engines.serve.errors import DeadlineExceeded

__all__ = ["check_deadline", "later"]


def check_deadline(deadline: float | None, stage: str) -> None:
    """Refuse to start or await a stage if the deadline, a time of ``time.monotonic()``, has passed.

    Raises:
        DeadlineExceeded: with how late it is and the stage.
    """
    if deadline is None:
        return
    late = time.monotonic() - deadline
    if late > 0:
        raise DeadlineExceeded(
            f"the deadline passed {late * 1e3:.1f} ms before {stage}; allow more time or send fewer candidates"
        )


def later(one: float | None, other: float | None) -> float | None:
    """Return the later of two deadlines; None never passes."""
    return None if one is None or other is None else max(one, other)
