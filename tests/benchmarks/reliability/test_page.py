from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.reliability.contract import Campaign, Outcome
from benchmarks.reliability.journal import Try
from benchmarks.reliability.page import load_figures, save_figures, write_page
from benchmarks.reliability.summary import Summary, summarize
from graphs.base.errors import UgsepError

KILL: Campaign[None] = Campaign("kill", "nothing is lost", lambda _: None, lambda *_: Outcome("a", "ok"), 1, 1)
TRIES = [
    Try(0, Outcome("build", "ok", "open", measures={"s": 3.0}), 0.5),
    Try(1, Outcome("build", "defect", "lost|file", "<script> \x1b[1m"), 0.5),
    Try(2, Outcome("build", "ok", "open", measures={"s": 5.0}), 0.5),
    Try(7, Outcome("cache", "refused"), 0.5),
]


def test_the_figures_count_by_target() -> None:
    found = summarize(KILL, 4, TRIES)
    assert found.targets == {"build": {"ok": 2, "defect": 1}, "cache": {"refused": 1}}
    assert found.kinds == {"build": {"open": 2, "lost|file": 1}, "cache": {}}
    assert found.measures == {"build": {"s": {"least": 3.0, "median": 4.0, "most": 5.0}}}
    assert (found.tries, found.defect_count, found.defects[0]["index"]) == (4, 1, 1)


def test_saved_figures_are_read_back_and_others_are_kept(tmp_path: Path) -> None:
    found = summarize(KILL, 4, TRIES)
    save_figures([found, Summary("fuzz", "no traceback", 0, 2, {"recipe": {"ok": 2}})], tmp_path)
    save_figures([summarize(KILL, 4, TRIES[:1])], tmp_path)
    assert [(one.name, one.tries) for one in load_figures(tmp_path)] == [("kill", 1), ("fuzz", 2)]
    (tmp_path / "fuzz.json").write_text('{"name": "fuzz"}')
    with pytest.raises(UgsepError, match=r"fuzz\.json: not figures"):
        load_figures(tmp_path)


def test_the_page_shows_counts_and_escapes_what_a_try_brought(tmp_path: Path) -> None:
    out = tmp_path / "reliability.md"
    write_page([summarize(KILL, 4, TRIES)], out)
    text = out.read_text()
    assert "| kill | nothing is lost | 4 | **1** |" in text
    assert "| build | 2 | 0 | **1** | open 2, lost\\|file 1 |" in text
    assert "| build | s | 3 | 4 | 5 |" in text
    assert "&lt;script> \\x1b[1m" in text
    assert text.isascii()
