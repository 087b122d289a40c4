"""What keeps user and item together, ranked by what changing it would win."""

from __future__ import annotations

from dataclasses import dataclass

from graphs.explain.explain import Explanation

__all__ = ["Change", "ranked"]


@dataclass(frozen=True)
class Change:
    """A change of the model: where, what to do, and an upper bound of what it wins.

    ``saved_flops`` is what would run once per request instead of per candidate, ``share`` its part of the whole
    model's FLOPs, and ``speedup_limit`` the FLOP limit with this change alone.
    """

    where: str
    change: str
    saved_flops: int
    share: float
    speedup_limit: float


def ranked(told: Explanation) -> tuple[Change, ...]:
    """Return the changes that would win something, the largest first; each is counted without the others."""
    found = [
        *((u.where, "hide item positions from user positions by a constant mask", u.movable_flops)
          for u in told.unmasked),
        *((m.where, "give the user a path of its own before it (UG-Sep)", m.movable_flops) for m in told.meetings),
    ]  # fmt: skip
    changes = [_change(told, *one) for one in found if one[2] > 0]
    return tuple(sorted(changes, key=lambda c: -c.saved_flops))


def _change(told: Explanation, where: str, change: str, saved: int) -> Change:
    kept = max(told.item_flops - saved, 1)
    request = told.user_flops + saved + told.candidates * kept
    limit = max(told.candidates * told.full_flops / request, told.speedup_limit)
    return Change(where, change, saved, saved / max(told.full_flops, 1), limit)
