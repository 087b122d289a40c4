"""docs/architecture.md describes the code as it is, and no page names a file, module or command that is not there."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
from pathlib import Path

import click
import pytest

from engines.cli.main import main as ugsep
from engines.cli.quant.main import main as quant
from engines.recipes.recipe import Gates

ROOT = Path(__file__).parents[1]
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PACKAGES = ("graphs", "export", "quant", "engines")
GROUPS: dict[str, click.Command] = {"ugsep": ugsep, "quant": quant}


def section(title: str) -> str:
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", ARCHITECTURE, re.DOTALL | re.MULTILINE)
    assert found is not None, title
    return found[1]


def by_hand(page: Path) -> str:
    """The text of a page without the sections that commands write."""
    return re.sub(r"<!-- begin (.*?) -->.*?<!-- end \1 -->", "", page.read_text(), flags=re.DOTALL)


def code(text: str) -> list[str]:
    """Code spans, fenced lines and indented lines, continued lines joined."""
    text = text.replace("\\\n", " ")
    fenced = re.findall(r"```\w*\n(.*?)```", text, re.DOTALL)
    spans = re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    indented = [line.strip() for line in text.splitlines() if line.startswith("    ")]
    return [" ".join(c.split()) for c in [*spans, *indented, *(line for f in fenced for line in f.splitlines())]]


def test_the_map_has_every_folder_and_no_other() -> None:
    listed = re.findall(r"^\| `([\w/]+)/` \|", section("Map of the folders"), re.MULTILINE)
    found = {str(p.parent.relative_to(ROOT)) for package in PACKAGES for p in (ROOT / package).rglob("__init__.py")}
    assert sorted(listed) == sorted(found), "add a line to, or remove one from, the map in docs/architecture.md"


def test_twelve_files_to_read_and_all_exist() -> None:
    listed = re.findall(r"^(\d+)\. `([\w/.]+)` - ", section("Read these 12 files in this order"), re.MULTILINE)
    assert [int(n) for n, _ in listed] == list(range(1, 13))
    assert [name for _, name in listed if not (ROOT / name).is_file()] == []


def test_the_gates_and_their_bounds() -> None:
    listed = re.findall(r"\| [<>]= (\S+) \| `(\w+)` \|", section("Gates"))
    assert {name: float(bound) for bound, name in listed} == dataclasses.asdict(Gates())


def test_the_keys_of_a_report(built_bundle: Path) -> None:
    first_cells = re.findall(r"^\| (`[^|]*) \|", section("Keys of report.json"), re.MULTILINE)
    listed = [key for cell in first_cells for key in re.findall(r"`(\w+)`", cell)]
    assert sorted(listed) == sorted(json.loads((built_bundle / "report.json").read_text()))


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_path_a_page_names_exists(page: Path) -> None:
    text = by_hand(page)
    paths = re.findall(rf"`((?:{'|'.join(PACKAGES)}|benchmarks|examples|tests|docs)/[\w./-]+)`", text)
    assert [path for path in paths if not (ROOT / path).exists()] == []
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_module_a_page_names_exists(page: Path) -> None:
    for name in re.findall(rf"`((?:{'|'.join(PACKAGES)})(?:\.\w+)+)", by_hand(page)):
        parts = name.split(".")
        depth = max(n for n in range(1, len(parts) + 1) if ROOT.joinpath(*parts[:n]).exists() or n == 1)
        if depth == len(parts) or parts[-1] in ("md", "py"):
            continue
        file = ROOT.joinpath(*parts[: depth + 1]).with_suffix(".py")
        assert file.is_file(), name
        for attribute in parts[depth + 1 :]:
            assert re.search(rf"\b{attribute}\b", file.read_text()), name


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_command_a_page_names_exists(page: Path) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for command in code(page.read_text()):
        words = re.split(r"[\s,:]+(?=\S)", command)
        if words[0] == "make" and len(words) > 1:
            assert words[1] in targets, command
        elif command.startswith("python -m "):
            assert importlib.util.find_spec(words[2]) is not None, command
        elif words[0] in GROUPS and len(words) > 1 and "->" not in command:
            check_options(GROUPS[words[0]], words[1:], command)


def check_options(found: click.Command, words: list[str], command: str) -> None:
    """Follow the words down to a command, then look up every option."""
    while isinstance(found, click.Group) and words and not words[0].startswith("-"):
        assert words[0] in found.commands, command
        found, words = found.commands[words[0]], words[1:]
    known = {option for parameter in found.params for option in (*parameter.opts, *parameter.secondary_opts)}
    used = [word.split("=")[0] for word in words if word.startswith("--")]
    assert [option for option in used if option not in known] == [], command


def test_the_code_refers_only_to_sections_that_exist() -> None:
    titles = {t.lower() for t in re.findall(r"^## (.*)$", ARCHITECTURE, re.MULTILINE)}
    for package in PACKAGES:
        for file in (ROOT / package).rglob("*.py"):
            for title in re.findall(r"architecture\.md, ([\w .]+)\)", file.read_text()):
                assert title.lower() in titles, file
