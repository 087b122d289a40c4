"""The quality runs: what is trained, kept and quantized, and what the page says."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from examples.movielens.quality import page as quality_page
from examples.movielens.quality.page import BASE, COMPENSATED, MASKED, QUANTIZED, Result, change, findings


def _results() -> list[Result]:
    loss = (0.6, 0.6, 0.6)
    return [
        Result("m", "3:1", BASE, (0.70, 0.72, 0.71), loss),
        Result("m", "3:1", MASKED, (0.69, 0.71, 0.70), loss),
        Result("m", "3:1", COMPENSATED, (0.69, 0.709, 0.702), loss),
        Result("m", "3:1", QUANTIZED, (0.69, 0.709, 0.702), ()),
    ]


def test_changes_are_paired_by_seed() -> None:
    base, masked, full, quantized = _results()
    found = change(base, masked)
    # Every seed loses 0.01: 1.41 % of 0.71 on average, though the seeds themselves lie 0.02 apart.
    assert found.mean == pytest.approx(100 * (0.69 / 0.70 + 0.71 / 0.72 + 0.70 / 0.71 - 3) / 3)
    assert found.error < 0.02
    assert not found.is_noise
    assert change(masked, full).is_noise
    assert str(change(full, quantized)) == "+0.000 ± 0.000 %"


def test_one_seed_proves_nothing() -> None:
    found = change(Result("m", "1:1", BASE, (0.7,), ()), Result("m", "1:1", MASKED, (0.6,), ()))
    assert math.isinf(found.error)
    assert found.is_noise


def test_findings_say_where_the_paper_is_missed_and_met() -> None:
    (line,) = findings(_results())
    assert "**m 3:1**: the mask: -1.4" in line
    assert "compensation on top: +0.0" in line
    assert "(noise)" in line
    assert "worse than in the paper" in line
    near = Result("m", "3:1", COMPENSATED, (0.6999, 0.7198, 0.71), (0.6, 0.6, 0.6))
    (line,) = findings([_results()[0], _results()[1], near])
    assert "in agreement with the paper" in line


def test_the_page_has_every_row_its_plot_and_its_numbers(tmp_path: Path) -> None:
    page = tmp_path / "docs" / "q.md"
    quality_page.write(_results(), (0, 1, 2), page)
    text = page.read_text()
    assert text.count("| m | 3:1 |") == 4
    assert "![AUC by variant](q.svg)" in text
    assert "-0.02 %" in text
    assert "<svg" in page.with_suffix(".svg").read_text()
    assert [r["variant"] for r in json.loads(page.with_suffix(".json").read_text())][-1] == QUANTIZED


def test_what_is_written_below_the_table_stays(tmp_path: Path) -> None:
    page = tmp_path / "q.md"
    quality_page.write(_results(), (0, 1, 2), page)
    page.write_text(page.read_text() + "\nWhy that is.\n")
    quality_page.write(_results()[:-1], (0, 1, 2), page)
    text = page.read_text()
    assert text.count("| m | 3:1 |") == 3
    assert text.endswith(f"{quality_page.END}\n\nWhy that is.\n")
    assert text.count(quality_page.END) == 1
