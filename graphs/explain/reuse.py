"""Whether a split saves enough to be worth its two graphs."""

from __future__ import annotations

from graphs.base.errors import UgsepError
from graphs.explain.explain import Explanation, explain
from graphs.split.split import Split

__all__ = ["check_reuse", "little_reuse"]

#: Of the FLOPs. Two graphs with state between them cost a few percent of a request, so less than this is no gain.
LITTLE = 0.05


def little_reuse(split: Split) -> str:
    """Return a warning, as one line, if a split saves little of the FLOPs per candidate, else an empty string."""
    if split.reusable_share >= LITTLE:
        return ""
    return f"only {_share(split)} run once per request; {_remedy(explain(split))}"


def check_reuse(split: Split, least: float) -> None:
    """Check that at least the share ``least`` of the FLOPs, from 0 to 1, runs once per request.

    Raises:
        UgsepError: it is less.
    """
    if not split.reusable_share >= least:
        raise UgsepError(
            f"{_share(split)} run once per request, less than --min-reuse {least:g}; {_remedy(explain(split))}"
        )


def _share(split: Split) -> str:
    return f"{split.reusable_share:.1%} of the FLOPs"


def _remedy(told: Explanation) -> str:
    """Return what keeps user and item together most, and how to separate them."""
    if told.unmasked:
        most = max(told.unmasked, key=lambda u: u.movable_flops)
        mask = "-inf, not by a finite number" if most.finite else "a constant mask"
        return f"{most.where} lets user positions see item positions; hide these by {mask}"
    if told.meetings:
        return (
            f"{told.meetings[0].where} joins user and item; give the user a path of its own before it (UG-Sep), see "
            "'ugsep split --explain'"
        )
    return "few FLOPs are the user's; name all inputs that the candidates of a request share as user inputs"
