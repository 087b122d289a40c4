"""Results survive being saved; a file of another format is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.model_zoo.results import Build, Gate, Result, load, load_all, save, save_all
from graphs.base.errors import UgsepError

FOUND = Result(
    "fuxictr", "DIN", "split", user=("a",), item=("b",), float64=1e-16,
    build=Build(0, (Gate("fixtures", None, 1.0, "<=", False),)),
)  # fmt: skip


def test_results_survive(tmp_path: Path) -> None:
    save(tmp_path / "results", "fuxictr_din", FOUND)
    assert load(tmp_path / "results", "fuxictr_din") == FOUND
    assert load(tmp_path / "results", "other") is None
    save_all(tmp_path / "all.json", {"torch": "2.13"}, [FOUND])
    assert load_all(tmp_path / "all.json") == ({"torch": "2.13"}, [FOUND])


def test_results_of_another_format_are_refused(tmp_path: Path) -> None:
    (tmp_path / "all.json").write_text('{"machine": {}, "results": [{"package": "a", "model": "b", "outcom": "c"}]}')
    with pytest.raises(UgsepError, match="outcom"):
        load_all(tmp_path / "all.json")
    with pytest.raises(UgsepError, match=r"no results; run: python -m benchmarks\.model_zoo run"):
        load_all(tmp_path / "none.json")
