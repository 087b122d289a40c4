from __future__ import annotations

import importlib
import random
from pathlib import Path

import pytest

from benchmarks.reliability.fuzz.guided.order import ROOT
from benchmarks.reliability.fuzz.guided.table import TARGETS, Target, target_of
from benchmarks.reliability.fuzz.guided.verdict import judged
from graphs.base.errors import UgsepError


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_sound_inputs_are_accepted_and_mutants_reach_both_ends(target: Target, tmp_path: Path) -> None:
    parser = getattr(importlib.import_module(target.module), target.factory)(tmp_path)
    for seed in parser.seeds:
        verdict = judged(parser, seed)
        assert verdict.result == "ok", verdict
    mutants = (parser.mutate(parser.seeds[i % len(parser.seeds)], random.Random(i)) for i in range(60))
    results = {judged(parser, mutant).result for mutant in mutants}
    assert results == {"ok", "refused"}


def test_what_is_watched_exists() -> None:
    assert [path for target in TARGETS for path in target.watched if not (ROOT / path).exists()] == []


def test_an_unknown_target_is_refused_with_the_nearest() -> None:
    with pytest.raises(UgsepError, match="unknown target 'manifests', did you mean 'manifest'"):
        target_of("manifests")
