from __future__ import annotations

import pytest
from rich.table import Table

from engines.render.console import print_table


def test_a_table_in_a_file_is_not_wrapped_and_brackets_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    shown = Table("what")
    shown.add_row("[bold]" + "x" * 150)
    print_table(shown)
    assert "[bold]" + "x" * 150 in capsys.readouterr().out
