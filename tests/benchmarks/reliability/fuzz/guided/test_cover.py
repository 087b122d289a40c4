from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from benchmarks.reliability.fuzz.guided import cover as cover_module
from benchmarks.reliability.fuzz.guided.cover import Bounds, check_installed, cover, replay
from benchmarks.reliability.fuzz.guided.figures import kept_defects, read_figures
from benchmarks.reliability.fuzz.guided.order import COUNTS
from benchmarks.reliability.fuzz.guided.table import Target, target_of
from graphs.base.errors import UgsepError

PLANTED = "tests/benchmarks/reliability/fuzz/guided/planted.py"
MODULE = PLANTED.removesuffix(".py").replace("/", ".")
needs_atheris = pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None, reason="atheris is not installed: pip install 'ugsep[fuzz]'"
)


def planted(factory: str) -> Target:
    return Target("planted", MODULE, factory, (PLANTED,))


@needs_atheris
def test_manifests_are_accepted_or_refused_and_a_run_goes_on_from_the_corpus(tmp_path: Path) -> None:
    first = cover(target_of("manifest"), tmp_path, 0, Bounds(inputs=400))
    assert kept_defects(tmp_path) == []
    assert (first.inputs, first.processes, first.ok + first.refused) == (400, 1, 400)
    assert first.ok > 10, "mutants that are not sealed again are all refused"
    assert first.edges > 100, "without the manifest's checks, the parser is not instrumented"
    again = cover(target_of("manifest"), tmp_path, 0, Bounds(inputs=200))
    assert (again.inputs, again.processes, again.seed) == (600, 2, 0)
    assert again.corpus >= first.corpus > 5
    assert read_figures(tmp_path) == again


@needs_atheris
def test_a_planted_bug_is_found_replayed_and_forgotten_when_mended(tmp_path: Path) -> None:
    found = cover(planted("with_a_bug"), tmp_path, 0, Bounds(inputs=20_000))
    assert found.defects == 1
    ((path, kind, detail),) = kept_defects(tmp_path)
    assert (kind, detail) == ("KeyError in planted.py _parse", "'planted'")
    assert path.read_bytes()[:2] == b"{!"
    again = replay(planted("with_a_bug"), path)
    assert (again.result, again.kind) == ("defect", kind)
    mended = cover(planted("that_hangs"), tmp_path, 0, Bounds(inputs=20))
    assert mended.defects == 0
    assert (tmp_path / "corpus" / path.stem).is_file()


@needs_atheris
def test_a_parser_that_dies_is_a_defect_and_the_run_goes_on(tmp_path: Path) -> None:
    found = cover(planted("that_dies"), tmp_path, 0, Bounds(inputs=8))
    assert found.processes > 1
    ((path, kind, _),) = kept_defects(tmp_path)
    assert kind == "signal 6"
    assert len(path.read_bytes()) > 6


def test_a_replayed_input_may_not_take_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cover_module, "_PROCESSOR_SECONDS", 1)
    (tmp_path / "input").write_bytes(b"hang")
    verdict = replay(planted("that_hangs"), tmp_path / "input")
    assert (verdict.result, verdict.kind) == ("defect", "more than 1 s of processor time")


def test_a_parser_that_cannot_be_imported_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "input").write_bytes(b"")
    with pytest.raises(UgsepError, match=r"planted: cannot be replayed: .*no attribute 'nothing'"):
        replay(planted("nothing"), tmp_path / "input")


@needs_atheris
def test_a_fuzzer_that_cannot_start_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UgsepError, match=r"planted: the fuzzer ended with 1: .*no attribute 'nothing'"):
        cover(planted("nothing"), tmp_path, 0, Bounds(inputs=5))
    assert not (tmp_path / COUNTS).exists()


def test_a_missing_fuzzer_is_said_with_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UgsepError, match=r"atheris is not installed; pip install 'ugsep\[fuzz\]'"):
        check_installed()
