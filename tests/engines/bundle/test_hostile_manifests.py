"""Manifests that an author without scruples wrote, digest and all: every reader refuses them in one line or works."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from click.testing import CliRunner

from engines import Ranker
from engines.bundle.files import MANIFEST
from engines.bundle.manifest import read_manifest
from engines.cli.main import main
from engines.cli.quant.main import main as quant
from graphs.base.errors import UgsepError
from tests.manifests import write_raw

TEXTS = (
    "[/b]", "[bold red]x[/]", "[link=file:///etc]x[/link]", "<script>alert(1)</script>", "</script>", ":smile:",
    "\x1b[2J\x1b[H", "\x07", "a\nb", "a\rb", "\u202egnp.exe", "\u2066x\u2069", "\ud800", "\0", "", " ", "x" * 5000,
    "$x^$", "{0}", "%s", "../../etc/passwd", "/etc/passwd", "C:\\x", "NaN", "0" * 64,
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1.5, 2**31, 2**63, 10**400, 1e308, float("nan"), float("inf"), [], {}, [[]], [None],
    {"": ""}, {"[/b]": "[/b]"}, {"\x1b[2J": 1}, json.loads("[" * 50 + "]" * 50),
)  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value below this one."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in children:
        yield (*path, key)
        yield from places(inner, (*path, key))


def mutant(whole: dict[str, Any], rng: Random) -> dict[str, Any]:
    """Return the document with one to three values replaced, removed, renamed, doubled or nested."""
    made = copy.deepcopy(whole)
    for _ in range(rng.choice((1, 1, 2, 3))):
        *above, last = rng.choice(list(places(made)))
        parent = made
        for key in above:
            parent = parent[key]
        kind = rng.choice(("text", "text", "value", "value", "remove", "rename", "twice", "nest", "number"))
        if kind == "text":
            parent[last] = rng.choice(TEXTS)
        elif kind == "value":
            parent[last] = rng.choice(VALUES)
        elif kind == "remove":
            del parent[last]
        elif kind == "rename" and isinstance(parent, dict):
            parent[rng.choice(TEXTS)] = parent.pop(last)
        elif kind == "twice" and isinstance(parent, list):
            parent.append(parent[last])
        elif kind == "nest":
            for _ in range(rng.choice((1, 40, 300))):
                parent[last] = [parent[last]]
        elif isinstance(parent[last], int) and not isinstance(parent[last], bool):
            parent[last] += rng.choice((-1, 1, 1 << 20))
    return made


def check_line(message: str) -> None:
    """Check that a refusal is one line that cannot control a terminal."""
    assert message
    assert message.isprintable(), ascii(message)
    assert len(message) < 1500


def check_output(result: Any, what: str) -> bool:
    """Check what a command printed; return whether it succeeded."""
    assert result.exit_code in (0, 2), (what, result.output, result.exception)
    for line in result.output.splitlines():
        assert line.isprintable(), (what, ascii(line))
    if result.exit_code == 2:
        assert result.stdout == "", what
        assert (result.stderr[:7], result.stderr.count("\n")) == ("error: ", 1), (what, result.stderr)
    return bool(result.exit_code == 0)


@pytest.mark.parametrize("mutants", [60, pytest.param(300, marks=pytest.mark.slow)])
def test_every_reader_holds(bundle: Path, mutants: int) -> None:
    whole = json.loads((bundle / MANIFEST).read_text())
    accepted = 0
    for seed in range(mutants):
        write_raw(bundle, mutant(whole, Random(seed)))
        what = f"mutant {seed}"
        try:
            read_manifest(bundle)
            sound = True
        except UgsepError as error:
            check_line(str(error))
            sound = False
        for command, arguments in ((main, ["inspect"]), (main, ["verify"]), (quant, ["inspect"])):
            shown = check_output(CliRunner().invoke(command, [*arguments, str(bundle)]), f"{what}: {arguments}")
            assert not shown or sound, what
        if not sound:  # the proof of those that are accepted takes seconds each
            assert not check_output(CliRunner().invoke(main, ["validate", "--synthetic", str(bundle)]), what)
        try:
            Ranker.from_bundle(bundle).close()
        except UgsepError as error:
            check_line(str(error))
        else:
            assert sound, what
        accepted += sound
    assert mutants / 30 < accepted < mutants / 2, "the mutations reach both what parses and what does not"


@pytest.mark.parametrize("name", [text for text in TEXTS if text.isprintable() and 0 < len(text) < 100])
def test_a_model_of_any_printable_name_is_shown_as_it_is(bundle: Path, name: str) -> None:
    raw = json.loads((bundle / MANIFEST).read_text())
    raw["model"] = raw["reasons"]["item"] = name
    write_raw(bundle, raw)
    for command in ("inspect", "verify"):
        result = CliRunner().invoke(main, [command, str(bundle)])
        assert result.exit_code == 0, result.output
        assert name in result.output


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 900 + "1" + "}" * 900, "[" * 900 + "]" * 900])
def test_deep_nesting_is_refused_in_every_document(bundle: Path, text: str) -> None:
    for name in ("report.json", "fixtures.json", MANIFEST):
        before = (bundle / name).read_text()
        if name == MANIFEST:
            (bundle / name).write_text(before.replace('"choice": {', f'"choice": {text}, "x": {{', 1))
        else:
            (bundle / name).write_text(text)
        for command in (["verify"], ["inspect"], ["validate", "--synthetic"]):
            assert not check_output(CliRunner().invoke(main, [*command, str(bundle)]), f"{command} {name}")
        (bundle / name).write_text(before)
