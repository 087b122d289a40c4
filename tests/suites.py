"""Which cases of a long list of parameters belong to the fast suite."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import pytest

__all__ = ["slow_but"]


def slow_but(fast: Collection[str], names: Iterable[str]) -> list[object]:
    """Return all names as parameters, those that are not ``fast`` marked as slow.

    For lists whose cases take seconds each and go through the same code: a few that differ most stay in every run.
    """
    listed = list(names)
    unknown = set(fast) - set(listed)
    assert not unknown, f"not among the names: {sorted(unknown)}"
    return [name if name in fast else pytest.param(name, marks=pytest.mark.slow) for name in listed]
