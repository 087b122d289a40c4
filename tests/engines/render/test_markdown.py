"""Pages: sections between markers, escaped templates, and reproducible plots."""

from __future__ import annotations

from pathlib import Path

from engines.render.markdown import table, write_section


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
