"""Give a new ranker the user states that the old one has in use."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np

from engines.backends.contract import Array
from engines.serve.ranker import Ranker
from graphs.base.errors import UgsepError

__all__ = ["WARM_SECONDS", "warm_from"]

WARM_SECONDS = 10.0
_BATCH = 64


def warm_from(new: Ranker, old: Ranker, seconds: float = WARM_SECONDS) -> str:
    """Take over the states of ``old``, or compute its recent users again; return what was done, as one line.

    States are taken over if both have the same user engine. Otherwise the most recent users are computed, for at most
    about ``seconds``; users that do not fit the new engine are left to their next request.
    """
    adopted = new.adopt_states(old)
    if adopted:
        return f"took over the states of {adopted} users: the user engine is the same"
    users = old.recent_users(old.cache_info().users)
    if not users:
        return "no user state to warm"
    wanted, had = {spec.name for spec in new.user_inputs}, set(users[0])
    if wanted != had:
        changed = ", ".join(sorted(wanted ^ had))
        return f"no user state warmed: the user features changed ({changed})"
    started = time.monotonic()
    size = min(_BATCH, new.max_users or _BATCH)
    first, rest = users[:size], users[size:]
    done = _warm(new, first, size, started + seconds)
    # The rest is computed oldest first, so that the cache evicts the oldest first. What fits is therefore estimated.
    spent = time.monotonic() - started
    fitting = int(len(first) * max(seconds - spent, 0.0) / spent) if spent > 0 else len(rest)
    done += _warm(new, rest[:fitting][::-1], size, started + seconds)
    if rest:
        _warm(new, first[::-1], size, time.monotonic() + 1.0)  # cached: this only makes them the most recent again
    return f"warmed {done} of {len(users)} users in {time.monotonic() - started:.1f} s"


def _warm(ranker: Ranker, users: Sequence[Mapping[str, Array]], size: int, deadline: float) -> int:
    """Compute states in batches until the deadline; return the number of users that were computed or cached."""
    done = 0
    for start in range(0, len(users), size):
        if time.monotonic() >= deadline:
            break
        batch = users[start : start + size]
        try:
            ranker.warm({name: np.concatenate([user[name] for user in batch]) for name in batch[0]}, deadline)
        except (UgsepError, ValueError):  # an id above a smaller table, another width: their next request will say so
            continue
        done += len(batch)
    return done
