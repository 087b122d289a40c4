from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.reliability.fuzz.guided.figures import Figures, guided_summary, read_figures, write_figures
from benchmarks.reliability.page import load_figures, save_figures, write_page
from graphs.base.errors import UgsepError


def test_figures_become_a_table_of_the_page(tmp_path: Path) -> None:
    work = tmp_path / "work"
    assert guided_summary(work) is None
    folder = work / "coverage" / "recipe"
    (folder / "defects").mkdir(parents=True)
    (folder / "defects" / "ab.json").write_text(json.dumps({"kind": "KeyError in a.py b", "detail": "'x'"}))
    write_figures(folder, Figures(7, 2, 12_345, 45, 12_300, 1, 210, 640, 33))
    found = guided_summary(work)
    assert found is not None
    assert (found.name, found.seed, found.tries, found.defect_count) == ("coverage", 7, 12_345, 1)
    save_figures([found], tmp_path / "figures")
    write_page(load_figures(tmp_path / "figures"), tmp_path / "page.md")
    text = (tmp_path / "page.md").read_text()
    assert "| recipe | 45 | 12,300 | **1** |" in text
    assert "| target | inputs | edges | features | corpus |" in text
    assert "| recipe | 12,345 | 210 | 640 | 33 |" in text
    assert "| ab | recipe | KeyError in a.py b | 'x' |" in text


def test_damaged_figures_are_refused(tmp_path: Path) -> None:
    (tmp_path / "figures.json").write_text("{")
    with pytest.raises(UgsepError, match="not figures of a target"):
        read_figures(tmp_path)
