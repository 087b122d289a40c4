from __future__ import annotations

from pathlib import Path

import jinja2
import pytest

from engines.render.html import render


def test_values_are_escaped_and_a_missing_one_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text("<p>{{ name }}: {{ size|bytes }}, {{ 2|twice }}</p>")
    shown = render("page.html", {"name": "<b>", "size": 2048}, {"twice": lambda n: str(2 * n)}, tmp_path)
    assert shown == "<p>&lt;b&gt;: 2.0 KiB, 4</p>"
    with pytest.raises(jinja2.UndefinedError, match="'name' is undefined"):
        render("page.html", {"size": 1}, {"twice": str}, tmp_path)
