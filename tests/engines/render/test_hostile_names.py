"""Names with markup, formulas and escape sequences, in everything that shows them."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from rich.table import Table

from engines.bench.correctness import Quality
from engines.bench.costs import Costs
from engines.bench.findings import sizes
from engines.bench.machine import Machine
from engines.bench.page import markdown_section as bench_markdown
from engines.bench.page import page as bench_page
from engines.bench.peak import MachinePeak
from engines.bench.result import BenchResult
from engines.bench.run import Measured, Settings, Standing, Timing
from engines.build.catalogue import ModelRow, RecipeFigures, markdown
from engines.build.catalogue import page as models_page
from engines.build.report_plots import weight_sqnr
from engines.bundle.report_file import read_report
from engines.cli.quant.tables import show_rows
from engines.measure.percentiles import Percentiles
from engines.render.console import print_table, stdout_console
from engines.render.html import render
from engines.render.markdown import table, write_section
from engines.verify.checks import Check
from engines.verify.validate import junit_xml
from graphs.base.errors import GateFailed, UgsepError
from graphs.base.progress import Progress, show_progress
from graphs.explain.picture import draw
from quant.weight_table import QuantRow
from tests.graphs import small_models

NAMES = (
    "<script>alert(1)</script>", "</script></title></svg>", "[/b]", "[link=file:///etc]x", ":smile:", "a|b",
    "$x^{", "\x1b[2J\x1b]0;t\x07", "\u202egnp.exe", "\u2066x\u2069", "\ud800", "a\rb\x00", "<!--", "&lt;", "'\"",
)  # fmt: skip
PLAIN = "plain"


class Tags(HTMLParser):
    """The elements of a page and the names of their attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, tuple[str, ...]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, tuple(name for name, _ in attrs)))

    def handle_comment(self, data: str) -> None:
        self.found.append(("comment", ()))


def tags(page: str) -> list[tuple[str, tuple[str, ...]]]:
    # Matplotlib draws a mark per character: those of plots are compared by their own test.
    found = Tags()
    found.feed(page)
    return found.found


def printable(text: str) -> bool:
    """Whether all but the line breaks of a text can be printed."""
    return all(c.isprintable() or c in "\n\t" for c in text)


def named(value: Any, name: str) -> Any:
    """Return a document with every text in it replaced."""
    if isinstance(value, dict):
        return {key: named(inner, name) for key, inner in value.items()}
    if isinstance(value, list):
        return [named(inner, name) for inner in value]
    return name if isinstance(value, str) else value


def weight_row(name: str) -> QuantRow:
    return QuantRow(name, name, "matmul", (3, 5), name, 0, 8, 41.0, None, 60, 15, name)


def report(bundle: Path, name: str) -> str:
    document = named(read_report(bundle), name)
    document["auc"] = {variant: {name: 0.5} for variant in ("fp32", "split", "quantized")}
    document["parity_by_task"] = {
        variant: {name: next(iter(found.values()))} for variant, found in document["parity_by_task"].items()
    }
    document["precision"] = {"user": name, "item": name}
    values = {
        "report": document,
        "checks": [Check(name, 1.0, 2.0)],
        "drawings": {
            "errors": "",
            "latency": "",
            "shares": "",
            "sqnr": weight_sqnr([(name, 41.0)]),
        },
        "rows": [weight_row(name)],
        "latency": document["latency_by_candidates"],
    }
    return render("report.html", values)


def models(bundle: Path, name: str) -> str:
    figures = RecipeFigures(9, 1.5, 2.0, 0.5, 100, 30, 0.7, 0.0)
    return models_page([(ModelRow(name, name, 1, 2, 3, name, 0.5, 2.0), figures)], name)


def bench_result(name: str) -> BenchResult:
    ms = Percentiles(1.0, 2.0, 3.0)
    ours, other = f"ugsep {name}", f"onnxruntime {name}"
    quality = Quality(90.0, 1.0, 80.0)
    standings = (
        Standing(ours, True, True, "fp32", name, quality, 5),
        Standing(other, False, False, "fp32", name, quality),
    )
    kinds = ("cold", "cached", "user", "item")
    timings = [Timing(ours, kind, 1, n, ms, 1.0, 1.0, 1.0) for n in (1, 9) for kind in kinds]
    timings += [Timing(other, "whole", 1, n, ms, 1.0, 1.0, 1.0) for n in (1, 9)]
    measured = Measured(standings, tuple(timings), (MachinePeak(1, 100.0, name, 10.0),), {name: name})
    costs = Costs(10, 20, 40, 80)
    machine = Machine(name, name, 2, name, 0.0, {"torch": name})
    settings = Settings(candidates=(1, 9), threads=(1,))
    return BenchResult(name, name, machine, settings, costs, measured, tuple(sizes(measured, costs)))


def bench(bundle: Path, name: str) -> str:
    return bench_page(bench_result(name))


def picture(bundle: Path, name: str) -> str:
    return draw(small_models.small(sorted(small_models.WORKS)[0]), name)


PAGES: dict[str, Callable[[Path, str], str]] = {
    "report": report,
    "models": models,
    "bench": bench,
    "picture": picture,
}


@pytest.mark.parametrize("page", sorted(PAGES))
def test_a_page_has_the_same_elements_whatever_the_names_are(built_bundle: Path, page: str) -> None:
    expected = tags(PAGES[page](built_bundle, PLAIN))
    assert len(expected) > 10
    for name in NAMES:
        made = PAGES[page](built_bundle, name)
        assert printable(made), ascii(name)
        made.encode()
        assert tags(made) == expected, ascii(name)


def test_markdown_and_junit_keep_names_in_their_place(tmp_path: Path) -> None:
    figures = RecipeFigures(9, 1.5, 2.0, 0.5, 100, 30, 0.7, 0.0)
    for name in NAMES:
        lines = table(("a", "b"), [(name, name)])
        assert len(lines) == 3
        assert lines[2].replace("\\|", "").count("|") == 3
        assert "<s" not in lines[2]
        assert "<!" not in lines[2]
        assert lines[2].isprintable()
        rows = [(ModelRow(name, name, 1, 2, 3, name, 0.5, 2.0), figures)]
        path = tmp_path / "page.md"
        for section in (markdown(rows, name), bench_markdown(bench_result(name)), "second\n"):
            write_section(path, "one", section, "# Page\n")  # replaces the section before
        write_section(path, name, bench_markdown(bench_result(name)), "")
        written = path.read_text(encoding="utf-8")
        assert printable(written)
        assert tags(written) == [("comment", ())] * 4, "only the markers"
        assert written.startswith("# Page\n\n<!-- begin one -->\nsecond\n<!-- end one -->\n")
        path.unlink()
        read = ElementTree.fromstring(junit_xml(name, [Check(name, 2.0, 1.0)], name))
        assert [element.tag for element in read.iter()] == ["testsuite", "testcase", "failure"]


@pytest.mark.parametrize("name", NAMES)
def test_consoles_print_names_verbatim_or_escaped(capsys: pytest.CaptureFixture[str], name: str) -> None:
    shown = Table("what", name, title=name, caption=name)
    shown.add_row(name, name)
    print_table(shown)
    stdout_console().print(name)
    show_rows([weight_row(name)])
    printed = capsys.readouterr().out
    assert printable(printed)
    assert printed.count(name if name.isprintable() else ascii(name)[1:-1].replace("\\r", "\\r")) >= 3


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_progress_draws_names_as_text() -> None:
    for out in (io.StringIO(), Terminal()):
        with show_progress(out) as progress:
            for name in NAMES:
                progress(Progress(name if name.isprintable() else "step", 1, 1, name))
        written = out.getvalue()
        for bad in ("\u202e", "\x1b]0;t", "\x00", "\ud800"):
            assert bad not in written, ascii(bad)


def test_errors_are_one_printable_line() -> None:
    for name in NAMES:
        for error in (UgsepError, GateFailed):
            assert str(error(f"the name {name}\nis wrong")).isprintable()
        json.dumps(str(UgsepError(name))).encode(sys.getdefaultencoding())
