from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from benchmarks.reliability.registry import CAMPAIGNS, campaign
from benchmarks.reliability.run import Limits, run


@pytest.mark.parametrize("name", CAMPAIGNS)
def test_the_short_form_finds_no_defect(name: str, tmp_path: Path) -> None:
    assert importlib.util.find_spec(CAMPAIGNS[name]) is not None
    chosen = campaign(name)
    assert chosen.name == name
    made = run(chosen, tmp_path, 0, Limits(chosen.short_tries))
    assert len(made) == chosen.short_tries
    assert [f"try {one.index}: {one.outcome}" for one in made if one.outcome.result == "defect"] == []
    assert any(one.outcome.result == "ok" for one in made), "a campaign in which all is refused tests nothing"
