"""The page of ops with row rules and of refusals, written from the code: ``python -m tests.graphs.refusals_page``."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from graphs.rows import rules
from graphs.trace import familiar

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "refusals.md"
_RAISED = {"MixesRows", "UgsepError"}
_FOLDERS = ("graphs/rows", "graphs/split", "graphs/trace")

_HEAD = """# What splits, and what is refused

This page is written from the code by `python -m tests.graphs.refusals_page`; a test compares them.

Every op must keep the rows of a batch apart. PyTorch marks the element-wise ops; those are known. The ops below have
a rule of their own. Any other op is decomposed into these, by PyTorch's decompositions or ours, before it is refused;
complex numbers become pairs of real ones, and a Fourier transform a product with a constant matrix;
`flex_attention` is written out, and `masked_scatter` with a mask that is the same in every row becomes a lookup.

"""


def page() -> str:
    """Return the page."""
    lines = ["## Ops with a row rule", "", "| rule | ops |", "|---|---|"]
    for rule, names in rules.BY_RULE:
        said = (rule.__doc__ or "").split("\n")[0].rstrip(".")
        kind = said if said and "Return" not in said else rule.__name__.strip("_")
        if kind == "rule":
            kind = f"Along an axis within a row ({next(c.cell_contents for c in rule.__closure__ or ())})"
        lines.append(f"| {kind} | {', '.join(f'`{n}`' for n in names)} |")
    lines.append(f"| The same for any row | {', '.join(f'`{n}`' for n in sorted(rules.UNIFORM_OPS))}, `arange` |")
    own = ", ".join(f"`{str(op).removeprefix('aten.')}`" for op in familiar.OWN)
    lines += ["", f"Decomposed by ugsep itself: {own}.", "", "## Refusals", "", "| what is said | remedy |"]
    lines += ["|---|---|"]
    lines += sorted({f"| {problem} | {remedy} |" for problem, remedy in refusals()})
    return _HEAD + "\n".join(lines) + "\n"


def refusals() -> Iterator[tuple[str, str]]:
    """Yield what each refusal of the splitter says, and its remedy; names and numbers are dots."""
    for folder in _FOLDERS:
        for file in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _RAISED:
                    problem, found, remedy = _text(node.args[0]).rpartition("; ")
                    yield (problem, remedy) if found else (remedy, "")


def _text(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return re.sub(r"\s+", " ", str(node.value)).replace("|", "\\|")
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) for part in node.values)
    return "..."


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
