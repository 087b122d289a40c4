"""Tensors from raw bytes."""

from __future__ import annotations

import numpy as np
import pytest

from engines.serve.oip.request import raw_tensor, seconds_of
from engines.serve.oip.signature import Input
from graphs.base.errors import UgsepError


def test_booleans_are_zero_or_one() -> None:
    rule = Input("seen", "item", np.dtype(np.bool_), "BOOL", (), 1, 0)
    assert raw_tensor(rule, b"\1\0\1", 3).tolist() == [True, False, True]
    with pytest.raises(UgsepError, match="input 'seen' has a byte of 2"):
        raw_tensor(rule, b"\1\0\2", 3)


def test_timeouts_are_microseconds_up_to_a_day() -> None:
    assert seconds_of(1500) == 0.0015
    for wrong in (-1, 10**12):
        with pytest.raises(UgsepError, match="timeout must be 0"):
            seconds_of(wrong)
