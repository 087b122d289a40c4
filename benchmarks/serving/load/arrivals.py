"""When requests arrive, and which."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from benchmarks.serving.load.pool import Pool


def poisson(rate: float, seconds: float, seed: int = 0) -> NDArray[np.float64]:
    """Return the arrival times of a Poisson process, in seconds from the start."""
    rng = np.random.default_rng(seed)
    count = max(1, int(rng.poisson(rate * seconds)))
    return np.sort(rng.uniform(0.0, seconds, count))


def uniform_picks(pool: Pool, count: int, seed: int = 0) -> NDArray[np.int64]:
    """Return ``count`` requests of the pool, each as likely as the others."""
    return np.random.default_rng(seed).integers(0, len(pool.entries), count)


def zipf_picks(pool: Pool, count: int, exponent: float = 1.0, seed: int = 0) -> NDArray[np.int64]:
    """Return ``count`` requests whose users follow Zipf's law: user k is drawn in proportion to 1 / k^exponent."""
    rng = np.random.default_rng(seed)
    weights = 1.0 / np.arange(1, pool.users + 1) ** exponent
    users = rng.choice(pool.users, count, p=weights / weights.sum())
    return users * pool.per_user + rng.integers(0, pool.per_user, count)
