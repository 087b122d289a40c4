"""Profiles: padded row counts, and the choice of one for a request."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.backends.engine_spec import Profile, Rows
from engines.backends.trt.profiles import choose_profile, padded_candidates
from graphs.base.errors import UgsepError


@given(st.integers(1, 2048), st.data())
def test_candidates_are_padded_to_few_sizes(most: int, data: st.DataObject) -> None:
    profile = Profile(Rows(1, 1, 1), Rows(1, most, most))
    candidates = data.draw(st.integers(1, most))
    size = padded_candidates(profile, candidates)
    assert candidates <= size <= most
    assert size - candidates < most / 16 + 1
    assert len({padded_candidates(profile, n) for n in range(1, most + 1)}) <= 16


def test_the_closest_profile_that_fits_is_taken() -> None:
    profiles = (Profile(candidates=Rows(1, 16, 64)), Profile(candidates=Rows(1, 256, 512)))
    assert [choose_profile(profiles, (1, n), "item") for n in (1, 64, 65, 512)] == [0, 0, 1, 1]
    with pytest.raises(UgsepError, match="1 users and 513 candidates are outside the item engine's profiles"):
        choose_profile(profiles, (1, 513), "item")
    with pytest.raises(UgsepError, match="at most 1 users, 512 candidates"):
        choose_profile(profiles, (2, 8), "item")
