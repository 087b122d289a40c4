from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import pytest

from benchmarks.reliability.contract import Campaign, Outcome
from benchmarks.reliability.journal import journal_path, read_journal
from benchmarks.reliability.run import Limits, generator_of, repeat, run
from graphs.base.errors import UgsepError
from graphs.base.progress import Progress


def coin(workspace: list[int], index: int, rng: random.Random) -> Outcome:
    """A try that remembers its index, and fails where its own random number is low."""
    workspace.append(index)
    value = rng.random()
    return Outcome("coin", "ok" if value > 0.3 else "defect", measures={"value": value})


COIN: Campaign[list[int]] = Campaign("coin", "heads", lambda _: [], coin, short_tries=3, long_tries=9)


def test_every_try_is_made_once_and_depends_on_its_index_alone(tmp_path: Path) -> None:
    made = run(COIN, tmp_path, 5, Limits(9))
    assert [one.index for one in made] == list(range(9))
    assert {one.outcome.result for one in made} == {"ok", "defect"}, "a defect must not stop the run"
    for one in made:
        assert repeat(COIN, tmp_path, 5, one.index).outcome == one.outcome
        assert repeat(COIN, tmp_path, 6, one.index).outcome != one.outcome
    assert read_journal(journal_path(tmp_path, "coin"))[1].keys() == set(range(9)), "a repeated try is not counted"


def test_a_stopped_run_goes_on_where_it_was(tmp_path: Path) -> None:
    first = run(COIN, tmp_path, 5, Limits(4))
    indices: list[int] = []
    again = dataclasses.replace(COIN, prepare=lambda _: indices)
    resumed = run(again, tmp_path, 5, Limits(7))
    assert [one.outcome for one in resumed[:4]] == [one.outcome for one in first]
    assert indices == [4, 5, 6]
    run(again, tmp_path, 5, Limits(2), fresh=True)
    assert indices == [4, 5, 6, 0, 1]


def test_nothing_is_prepared_if_every_try_was_made(tmp_path: Path) -> None:
    run(COIN, tmp_path, 5, Limits(4))

    def never(_: Path) -> list[int]:
        raise AssertionError("prepared for nothing")

    assert len(run(dataclasses.replace(COIN, prepare=never), tmp_path, 5, Limits(4))) == 4


def test_a_line_cut_short_is_made_again(tmp_path: Path) -> None:
    whole = run(COIN, tmp_path, 5, Limits(3))
    path = journal_path(tmp_path, "coin")
    path.write_text(path.read_text()[:-9])
    again = run(COIN, tmp_path, 5, Limits(3))
    assert [one.outcome for one in again] == [one.outcome for one in whole]
    assert [one.outcome for one in read_journal(path)[1].values()] == [one.outcome for one in whole]


def test_ctrl_c_keeps_the_tries_before_it_and_closes_the_workspace(tmp_path: Path) -> None:
    closed = []

    def interrupted(workspace: list[int], index: int, rng: random.Random) -> Outcome:
        if index == 2:
            raise KeyboardInterrupt
        return coin(workspace, index, rng)

    with pytest.raises(KeyboardInterrupt):
        run(dataclasses.replace(COIN, attempt=interrupted, close=closed.append), tmp_path, 5, Limits(9))
    assert read_journal(journal_path(tmp_path, "coin"), 5)[1].keys() == {0, 1}
    assert closed == [[0, 1]]


def test_an_exception_that_escapes_is_a_defect(tmp_path: Path) -> None:
    def broken(_: list[int], index: int, __: random.Random) -> Outcome:
        raise KeyError(f"two\nlines {index}")

    (one,) = run(dataclasses.replace(COIN, attempt=broken), tmp_path, 5, Limits(1))
    assert one.outcome.result == "defect"
    assert one.outcome.kind == "KeyError"
    assert "\n" not in one.outcome.detail


def test_minutes_stop_a_run(tmp_path: Path) -> None:
    assert run(COIN, tmp_path, 5, Limits(9, minutes=1e-12)) == []


@pytest.mark.parametrize("minutes", [0.0, -1.0, float("nan")])
def test_minutes_that_are_none_are_refused(minutes: float) -> None:
    with pytest.raises(UgsepError, match=r"--minutes is .*; give a number above 0"):
        Limits(9, minutes)


def test_a_journal_of_another_seed_is_refused(tmp_path: Path) -> None:
    run(COIN, tmp_path, 5, Limits(1))
    with pytest.raises(UgsepError, match="tries of seed 5, not 6; pass --seed 5 or --fresh"):
        run(COIN, tmp_path, 6, Limits(2))


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    def meddle(_: list[int], index: int, rng: random.Random) -> Outcome:
        for other in (
            lambda: run(COIN, tmp_path, 5, Limits(9), fresh=True),
            lambda: repeat(COIN, tmp_path, 5, index),
        ):
            with pytest.raises(UgsepError, match="another run of coin works there; wait for it, or give another"):
                other()
        return Outcome("coin", "ok")

    made = run(dataclasses.replace(COIN, attempt=meddle), tmp_path, 5, Limits(2))
    assert [one.outcome.result for one in made] == ["ok", "ok"]
    assert repeat(COIN, tmp_path, 5, 0).index == 0, "the lock is free again"


@pytest.mark.parametrize("line", [b'{"indx": 1}', b"5", b"\xff"])
def test_a_damaged_journal_is_refused(tmp_path: Path, line: bytes) -> None:
    run(COIN, tmp_path, 5, Limits(2))
    path = journal_path(tmp_path, "coin")
    path.write_bytes(path.read_bytes() + line + b"\n")
    with pytest.raises(UgsepError, match="not a journal of a campaign"):
        run(COIN, tmp_path, 5, Limits(3))


def test_progress_counts_tries_and_defects(tmp_path: Path) -> None:
    events: list[Progress] = []
    made = run(COIN, tmp_path, 5, Limits(9), progress=events.append)
    assert [event.done for event in events] == list(range(1, 10))
    assert events[-1].note == f"{sum(one.outcome.result == 'defect' for one in made)} defects"


def test_campaigns_and_seeds_share_no_random_numbers() -> None:
    values = {generator_of(name, seed, i).random() for name in ("kill", "fuzz") for seed in (0, 1) for i in (0, 1)}
    assert len(values) == 8
