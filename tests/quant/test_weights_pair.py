"""Both graphs of a model quantized together: their files appear together or not at all."""

import dataclasses

import pytest

from graphs.base.errors import UgsepError
from quant.calibration.calibrate import calibrate
from quant.requests.readers import read_requests
from quant.requests.spec import request_spec
from quant.schemes.schemes import Absmax, Awq
from quant.weights import quantize_pair, quantize_side


def test_a_pair_is_written_whole_or_not_at_all(graphs, make_columns, make_shards, tmp_path):
    """A calibration that fits the user graph only used to leave the user's files without the item's."""
    make_shards(tmp_path / "data", make_columns(40), [])
    calibration = calibrate(*graphs, list(read_requests([tmp_path / "data"], request_spec(*graphs))))
    user, item = graphs
    out = tmp_path / "pair"
    tables = quantize_pair(user, item, out, scheme=Absmax())
    assert sorted(p.name for p in out.iterdir()) == sorted(name for table in tables for name in table.files)
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    alone = tmp_path / "alone"
    for side in graphs:
        quantize_side(side, alone, scheme=Absmax())
    assert {p.name: p.read_bytes() for p in alone.iterdir()} == before
    half = dataclasses.replace(calibration, item=calibration.user)
    with pytest.raises(UgsepError):
        quantize_pair(user, item, out, scheme=Awq(), calibration=half)
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
