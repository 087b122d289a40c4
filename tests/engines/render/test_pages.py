"""Pages: sections between markers, escaped templates, and reproducible plots."""

from __future__ import annotations

from pathlib import Path

import jinja2
import pytest
from rich.table import Table

from engines.render.console import print_table
from engines.render.html import render
from engines.render.markdown import table, write_section
from engines.render.svg import new_axes, to_svg


def test_a_markdown_table_aligns_its_columns() -> None:
    assert table(("name", "ms"), [("a", "1"), ("b", "2")]) == [
        "| name | ms |",
        "|---|---:|",
        "| a | 1 |",
        "| b | 2 |",
    ]
    assert table(("a", "b", "c"), [], "rll")[1] == "|---:|---|---|"


def test_a_section_replaces_its_older_self_and_leaves_the_rest(tmp_path: Path) -> None:
    page = tmp_path / "docs" / "page.md"
    write_section(page, "a", "one\n", "# Page\n")
    write_section(page, "b", "two\n", "# Page\n")
    page.write_text(page.read_text() + "\nBy hand.\n")
    write_section(page, "a", "three\n", "# Other\n")
    assert page.read_text() == (
        "# Page\n\n<!-- begin a -->\nthree\n<!-- end a -->\n\n<!-- begin b -->\ntwo\n<!-- end b -->\n\nBy hand.\n"
    )


def test_values_are_escaped_and_a_missing_one_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text("<p>{{ name }}: {{ size|bytes }}, {{ 2|twice }}</p>")
    shown = render("page.html", {"name": "<b>", "size": 2048}, {"twice": lambda n: str(2 * n)}, tmp_path)
    assert shown == "<p>&lt;b&gt;: 2.0 KiB, 4</p>"
    with pytest.raises(jinja2.UndefinedError, match="'name' is undefined"):
        render("page.html", {"size": 1}, {"twice": str}, tmp_path)


def test_the_same_plot_has_the_same_bytes() -> None:
    drawn = []
    for _ in range(2):
        figure, axes = new_axes("A title", grid=True)
        axes.plot([1, 2], [3, 4])
        drawn.append(to_svg(figure))
    assert drawn[0] == drawn[1]
    assert drawn[0].startswith("<svg")
    assert "A title" in drawn[0], "text stays text"


def test_a_table_in_a_file_is_not_wrapped_and_brackets_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    shown = Table("what")
    shown.add_row("[bold]" + "x" * 150)
    print_table(shown)
    assert "[bold]" + "x" * 150 in capsys.readouterr().out
