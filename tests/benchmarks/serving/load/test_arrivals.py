"""Which requests arrive."""

from __future__ import annotations

import numpy as np

from benchmarks.serving.load.arrivals import zipf_picks
from benchmarks.serving.load.pool import Entry, Pool


def test_zipf_users_are_drawn_by_rank() -> None:
    entry = Entry({}, {}, "", {}, "m")
    picks = zipf_picks(Pool((entry,) * 30, 0.0, per_user=3), 60_000)
    users = np.bincount(picks // 3, minlength=10) / len(picks)
    expected = 1 / np.arange(1, 11)
    assert np.allclose(users, expected / expected.sum(), atol=0.01)
    assert set(picks[picks < 3].tolist()) == {0, 1, 2}  # every request of a user
