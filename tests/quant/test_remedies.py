"""Every refusal of quantization and recipes says how to mend what is wrong."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[2]
_FILES = sorted(
    p for place in ("quant", "engines/recipes", "engines/cli/quant") for p in (_ROOT / place).rglob("*.py")
)
#: Values that are, or end with, a remedy: a semicolon is before it, or it is the name that was meant.
_REMEDIES = ("nearest", "error", "missing_package")


def refusals(path: Path) -> list[ast.expr]:
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    return [call.args[0] for call in calls if isinstance(call.func, ast.Name) and call.func.id == "UgsepError"]


@pytest.mark.parametrize("path", _FILES, ids=lambda path: path.relative_to(_ROOT).as_posix())
def test_every_refusal_has_a_remedy(path: Path) -> None:
    without = [text for refusal in refusals(path) if "; " not in (text := ast.unparse(refusal))
               and not any(f"{{{name}" in text for name in _REMEDIES)]  # fmt: skip
    assert not without


def test_the_refusals_are_found() -> None:
    assert sum(len(refusals(path)) for path in _FILES) > 80
