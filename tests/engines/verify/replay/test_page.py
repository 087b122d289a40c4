"""The page of a replay is one self-contained file with plots of every task."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from engines.measure.percentiles import Percentiles
from engines.verify.replay.drift import drift_by_task
from engines.verify.replay.latency import ReplayLatency
from engines.verify.replay.page import replay_page
from engines.verify.replay.replay import Bounds, Replay, replay


def test_the_page_needs_nothing_else_and_shows_everything(
    built_bundle: Path, recorded: Path, other_bundle: Callable[[float], Path]
) -> None:
    found = replay(built_bundle, other_bundle(0.05), [recorded], Bounds(drift=1e-6))
    page = replay_page(found)
    assert re.findall(r"(?:src|href)=\"(?!#)[^\"]*\"|@import|url\((?!#)[^)]*\)", page) == []
    assert page.count("<svg") == 3
    assert "out of bounds" in page
    for check in found.checks:
        assert f"<td>{check.name}</td>" in page
    for moved in found.tasks["like"].most_moved:
        assert f'<td class="n">{moved.request_id}</td>' in page
    assert found.reference in page
    assert found.actual in page


def test_hostile_names_equal_scores_and_single_candidates_are_drawn() -> None:
    scores = [{"<b>$x^$": np.array([1.0], np.float32)}]
    tasks = drift_by_task([1], scores, scores, 10)
    latency = {"b&c": ReplayLatency(Percentiles(0.001, 0.001, 9.0), Percentiles(0.0, 0.0, 0.0))}
    page = replay_page(Replay("<i>a", "b&c", 1, 1, tasks, ["<u>"], latency, Bounds()))
    assert "<i>a" not in page
    assert "<u>" not in page
    assert "<b>$" not in page
    assert "&lt;b&gt;$x^$" in page
