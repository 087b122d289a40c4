from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.reliability.journal import journal_path, read_journal
from benchmarks.reliability.registry import CAMPAIGNS, campaign


@pytest.mark.slow  # CI has a step of its own for it
@pytest.mark.parametrize("name", CAMPAIGNS)
def test_the_short_form_finds_no_defect(name: str, tmp_path: Path) -> None:
    assert importlib.util.find_spec(CAMPAIGNS[name]) is not None
    chosen = campaign(name)
    assert chosen.name == name
    # In a process of its own, as users run it: campaigns fork, and the child of a process whose tests have already
    # started OpenMP's threads waits for them for ever.
    command = [sys.executable, "-m", "benchmarks.reliability", "run", name, "--short", "--work", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    made = read_journal(journal_path(tmp_path, name), 0)[1].values()
    assert [f"try {one.index}: {one.outcome}" for one in made if one.outcome.result == "defect"] == []
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert len(made) == chosen.short_tries
    assert any(one.outcome.result == "ok" for one in made), "a campaign in which all is refused tests nothing"
