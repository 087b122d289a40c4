from __future__ import annotations

import json
import random
import sys
import types
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from benchmarks.reliability import registry
from benchmarks.reliability.commands import main
from benchmarks.reliability.contract import Campaign, Outcome


def attempt(_: None, index: int, rng: random.Random) -> Outcome:
    return Outcome("coin", "defect" if index == 2 else "ok", measures={"value": rng.random()})


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Run the command line with a campaign of three tries, the third of which is a defect, as 'threads'."""
    module = types.ModuleType("coin_campaign")
    module.__dict__["CAMPAIGN"] = Campaign("threads", "heads", lambda _: None, attempt, short_tries=2, long_tries=3)
    monkeypatch.setitem(sys.modules, "coin_campaign", module)
    monkeypatch.setitem(registry.CAMPAIGNS, "threads", "coin_campaign")
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(main, list(arguments))

    return run


def test_a_defect_is_a_failed_gate_and_says_how_to_repeat_it(command) -> None:
    assert command("run", "threads", "--short").exit_code == 0
    done = command("run", "threads")
    assert done.exit_code == 1
    assert "threads: 1 of 3 tries; repeat a try with --only INDEX --seed 0" in done.stderr
    assert "try 2: coin: defect" in done.stdout


def test_one_try_alone(command) -> None:
    assert command("run", "threads", "--only", "1").exit_code == 0
    done = command("run", "threads", "--only", "2", "--json")
    assert done.exit_code == 1
    assert json.loads(done.stdout)["result"] == "defect"
    assert command("run", "threads", "--only", "1", "--short").exit_code == 2


def test_figures_as_json_and_as_a_page(command, tmp_path: Path) -> None:
    figures = json.loads(command("run", "threads", "--tries", "2", "--json").stdout)
    assert figures[0]["targets"] == {"coin": {"ok": 2}}
    assert command("report").exit_code == 0
    assert "| threads | heads | 2 | 0 |" in (tmp_path / "docs" / "reliability.md").read_text()


def test_a_report_of_nothing_is_refused(command) -> None:
    done = command("report")
    assert done.exit_code == 2
    assert "no journals" in done.stderr


def test_ctrl_c_exits_with_130(command, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> Outcome:
        raise KeyboardInterrupt

    module = types.ModuleType("interrupted_campaign")
    module.__dict__["CAMPAIGN"] = Campaign("threads", "heads", lambda _: None, interrupted, 1, 1)
    monkeypatch.setitem(sys.modules, "interrupted_campaign", module)
    monkeypatch.setitem(registry.CAMPAIGNS, "threads", "interrupted_campaign")
    assert command("run", "threads").exit_code == 130
