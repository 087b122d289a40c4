"""Which profile of an engine a call runs on, and at how many rows."""

from __future__ import annotations

from collections.abc import Mapping

from engines.backends.built_engine import BuiltEngine
from engines.backends.engine_spec import Profile
from graphs.base.errors import UgsepError

#: Sizes per profile that candidates are padded to, so that any request size hits a recorded graph; padding costs at
#: most 1/16 of a profile's largest size.
_SIZES_PER_PROFILE = 16


def choose_profile(profiles: tuple[Profile, ...], rows: tuple[int, int], side: str) -> int:
    """Return the profile that fits (users, candidates) and is tuned closest to it.

    Raises:
        UgsepError: the rows are outside every profile.
    """
    users, candidates = rows
    fits = [
        (abs(p.candidates.opt - candidates), i)
        for i, p in enumerate(profiles)
        if p.users.min <= users <= p.users.max and p.candidates.min <= candidates <= p.candidates.max
    ]
    if not fits:
        most = max(profiles, key=lambda p: p.candidates.max)
        raise UgsepError(
            f"{users} users and {candidates} candidates are outside the {side} engine's profiles (at most "
            f"{most.users.max} users, {most.candidates.max} candidates); send fewer or build larger profiles"
        )
    return min(fits)[1]


def padded_candidates(profile: Profile, candidates: int) -> int:
    """Return the size to run ``candidates`` rows at: the next of 16 equal steps up to the profile's largest."""
    step = -(-profile.candidates.max // _SIZES_PER_PROFILE)
    return min(-(-candidates // step) * step, profile.candidates.max)


def axis_rows(built: BuiltEngine, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int]:
    """Return the rows of the two dynamic axes; an axis the engine lacks has the first profile's minimum."""
    found: dict[str, int] = {}
    for spec in built.inputs:
        for dim, size in zip(spec.shape, shapes[spec.name], strict=True):
            if isinstance(dim, str) and found.setdefault(dim, size) != size:
                raise UgsepError(f"input '{spec.name}' has {size} rows of '{dim}', other inputs {found[dim]}")
    least = built.profiles[0]
    return found.get("users", least.users.min), found.get("candidates", least.candidates.min)


def largest(dim: int | str, profile: Profile) -> int:
    """Return the most rows of one dimension in a profile."""
    if isinstance(dim, int):
        return dim
    return profile.users.max if dim == "users" else profile.candidates.max
