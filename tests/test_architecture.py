"""docs/architecture.md matches the code; no page and no docstring names a file, section or module that is missing."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
import tomllib
from pathlib import Path

import click
import pytest

from engines.build.autoselect import Trial
from engines.build.schemes import SchemeRow, SchemeTable
from engines.bundle.bundle import Bundle
from engines.cli.main import main as ugsep
from engines.cli.quant.main import main as quant
from engines.recipes.recipe import Gates
from graphs.split.hoist import Hoisted
from quant.policy import Rule
from tests.graphs import refusals_page

ROOT = Path(__file__).parents[1]
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "examples" / "movielens" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PACKAGES = ("graphs", "export", "quant", "engines")
GROUPS: dict[str, click.Command] = {"ugsep": ugsep, "quant": quant}
SOURCES = [
    file
    for folder in (*PACKAGES, "benchmarks", "examples", "tests")
    for file in (ROOT / folder).rglob("*")
    if file.suffix in (".py", ".html", ".yaml") and file != Path(__file__)
]
PATH = rf"\b((?:{'|'.join(PACKAGES)}|benchmarks|examples|tests|docs)/[\w./-]*\w\.(?:py|yaml|html|md))\b"


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


def test_the_diagrams_are_the_contracts() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = {c["containers"][0].split(".")[-1]: c["layers"] for c in contracts if "containers" in c}
    (diagram,) = re.findall(r"^    graphs  ->.*\n\n((?:    .*\n)+)", ARCHITECTURE, re.MULTILINE)
    drawn = {}
    for line in re.sub(r"\n +->", " ->", diagram).splitlines():
        package, chain = re.fullmatch(r"    (\w* ) +(\S+(?: \S+)*)(?:  .*)?", line).groups()  # type: ignore[union-attr]
        drawn.setdefault(package.strip() or "graphs", []).append(chain.split(" -> "))
    models, splitter = drawn.pop("graphs")
    assert {package: [chain] for package, chain in layers.items() if package != "graphs"} == drawn
    known = [part for layer in layers["graphs"] for part in layer.split(" | ")]
    assert [sorted(chain, key=known.index) for chain in (models, splitter)] == [models, splitter]
    assert set(models) | set(splitter) == set(known)
    (apart,) = (c for c in contracts if c["name"] == "The splitter knows no architecture")
    assert apart["source_modules"] == [f"graphs.{name}" for name in splitter if name not in models]
    assert apart["forbidden_modules"] == [f"graphs.{name}" for name in models if name not in splitter]


def test_twelve_files_to_read_and_all_exist() -> None:
    listed = re.findall(r"^(\d+)\. `([\w/.]+)` - ", section("Read these 12 files in this order"), re.MULTILINE)
    assert [int(n) for n, _ in listed] == list(range(1, 13))
    assert [name for _, name in listed if not (ROOT / name).is_file()] == []


def test_the_gates_and_their_bounds() -> None:
    listed = re.findall(r"\| [<>]= (\S+) \| `(\w+)` \|", section("Gates"))
    assert {name: float(bound) for bound, name in listed} == dataclasses.asdict(Gates())


#: Maps of a report whose keys are data: of a backend, or weight statuses.
DATA = {"figures", "session", "weights"}
#: The records of what the tiny bundle's report leaves empty.
RECORDS = {"schemes": (SchemeTable, SchemeRow), "split": (Hoisted,), "tried": (Trial,), "policy": (Rule,)}


def keys_inside(value: object) -> set[str]:
    if isinstance(value, dict):
        return set(value).union(*(keys_inside(inner) for key, inner in value.items() if key not in DATA))
    return set().union(*map(keys_inside, value)) if isinstance(value, list) else set()


def keys_of(record: type) -> set[str]:
    properties = {name for name, value in vars(record).items() if isinstance(value, property)}
    return properties | {field.name for field in dataclasses.fields(record)}


def test_the_keys_of_a_report(built_bundle: Path) -> None:
    report = json.loads((built_bundle / "report.json").read_text())
    tasks = Bundle.open(built_bundle).request_spec().tasks
    listed: dict[str, set[str]] = {}
    for first, second in re.findall(r"^\| (`[^|]*) \| (.*) \|$", section("Keys of report.json"), re.MULTILINE):
        for key in re.findall(r"`(\w+)`", first):
            listed[key] = listed.get(key, set()) | set(re.findall(r"`(\w+)`", second))
    records = {key: set().union(*map(keys_of, found)) for key, found in RECORDS.items()}
    assert listed == {key: (keys_inside(value) | records.get(key, set())) - {*tasks} for key, value in report.items()}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_path_a_page_names_exists(page: Path) -> None:
    text = by_hand(page)
    paths = re.findall(rf"`((?:{'|'.join(PACKAGES)}|benchmarks|examples|tests|docs)/[\w./-]+)`", text)
    assert [path for path in paths if not (ROOT / path).exists()] == []
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
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


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
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
        context = click.Context(found)
        assert words[0] in found.list_commands(context), command
        found, words = found.get_command(context, words[0]) or found, words[1:]
    known = {option for parameter in found.params for option in (*parameter.opts, *parameter.secondary_opts)}
    used = [word.split("=")[0] for word in words if word.startswith("--")]
    assert [option for option in used if option not in known] == [], command


def anchors(page: Path) -> set[str]:
    """The anchors that a Markdown page gives its headings, as GitHub does."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_section_a_page_links_to_exists(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]*)#([^)]+)\)", page.read_text())
    assert [link for link in links if link[1] not in anchors(page.parent / link[0] if link[0] else page)] == []


def test_a_missing_section_is_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A page\n\n## Keys of report.json\n\n[one](page.md#keys-of-reportjson) [two](#other)\n")
    assert anchors(page) == {"a-page", "keys-of-reportjson"}
    with pytest.raises(AssertionError, match="other"):
        test_every_section_a_page_links_to_exists(page)


def test_the_code_refers_only_to_pages_and_sections_that_exist() -> None:
    titles = {t.lower() for t in re.findall(r"^## (.*)$", ARCHITECTURE, re.MULTILINE)}
    wrong = []
    for file in SOURCES:
        text = file.read_text()
        wrong += [(file, t) for t in re.findall(r"architecture\.md, ([\w .]+)\)", text) if t.lower() not in titles]
        wrong += [(file, name) for name in re.findall(r"\b([a-z-]+\.md),? section", text)]
        wrong += [(file, path) for path in re.findall(PATH, text) if not (ROOT / path).exists()]
    assert wrong == []


def test_the_code_refers_only_to_modules_that_exist() -> None:
    """References such as ``graphs.split.proof.fresh_rows`` in docstrings."""
    wrong = []
    for file in SOURCES:
        for name in re.findall(rf"``((?:{'|'.join(PACKAGES)})(?:\.\w+)+)", file.read_text()):
            parts = name.split(".")
            module = next(n for n in range(len(parts), 0, -1) if is_module(parts[:n]))
            path = ROOT.joinpath(*parts[:module])
            text = (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text()
            if module < len(parts) and not re.search(rf"\b{parts[module]}\b", text):
                wrong.append((file, name))
    assert wrong == []


def is_module(parts: list[str]) -> bool:
    path = ROOT.joinpath(*parts)
    return (path / "__init__.py").is_file() or path.with_suffix(".py").is_file()


def test_the_page_of_refusals_is_what_the_code_says() -> None:
    assert refusals_page.PAGE.read_text() == refusals_page.page(), "run python -m tests.graphs.refusals_page"
    said = dict(refusals_page.refusals())
    assert said["is not known to keep rows apart"] == "rewrite it with row-wise operations"
    assert len(said) > 60
