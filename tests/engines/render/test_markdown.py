"""Pages: sections between markers, escaped templates, and reproducible plots."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from engines.render.markdown import table, write_section
from graphs.base.errors import UgsepError


def test_a_markdown_table_aligns_its_columns() -> None:
    assert table(("name", "ms"), [("a", "1"), ("b", "2")]) == [
        "| name | ms |",
        "|---|---:|",
        "| a | 1 |",
        "| b | 2 |",
    ]
    assert table(("a", "b", "c"), [], "rll")[1] == "|---:|---|---|"


def test_a_page_that_is_no_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "page.md")
    with pytest.raises(UgsepError, match=r"page.md' is a pipe, not a file; give a Markdown file"):
        write_section(tmp_path / "page.md", "a", "one\n", "# Page\n")


def test_a_section_replaces_its_older_self_and_leaves_the_rest(tmp_path: Path) -> None:
    page = tmp_path / "docs" / "page.md"
    write_section(page, "a", "one\n", "# Page\n")
    write_section(page, "b", "two\n", "# Page\n")
    page.write_text(page.read_text() + "\nBy hand.\n")
    write_section(page, "a", "three\n", "# Other\n")
    assert page.read_text() == (
        "# Page\n\n<!-- begin a -->\nthree\n<!-- end a -->\n\n<!-- begin b -->\ntwo\n<!-- end b -->\n\nBy hand.\n"
    )
