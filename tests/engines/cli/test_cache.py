"""``ugsep cache``: list, shrink and check, with exit statuses for scripts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from engines.cli.main import main
from engines.compile.cache import TEMPORARY, cached_build
from engines.render.byte_sizes import parse_size
from graphs.base.errors import UgsepError
from tests.engines.engine_records import tiny_engine


def run(*args: object, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(main, ["cache", *map(str, args)], env=env)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A cache of three engines, ``a`` unused for longest."""
    folder = tmp_path / "ugsep" / "engines"

    def build(directory: Path):
        (directory / "a.bin").write_bytes(b"w" * 5000)
        return tiny_engine(".", "a.bin").built

    for age, name in enumerate("cba"):
        cached_build(folder, name * 64, tmp_path / name, build)
        os.utime(folder / (name * 64), (1e9 - age, 1e9 - age))
    return folder


def test_ls_lists_the_least_recently_used_first(root: Path, tmp_path: Path) -> None:
    found = json.loads(run("ls", "--root", root, "--json").stdout)
    assert [(e["key"][0], e["side"], e["backend"], e["precision"]) for e in found] == [
        (key, "item", "onnxruntime", "w8a32") for key in "abc"
    ]
    assert all(5000 < e["bytes"] < 10_000 for e in found)
    # Without --root: the user's cache.
    printed = run("ls", env={"XDG_CACHE_HOME": str(tmp_path)})
    assert "aaaaaaaaaaaa" in printed.output
    assert "3 engines" in printed.output


def test_gc_keeps_the_newest_within_the_size(root: Path) -> None:
    one = json.loads(run("ls", "--root", root, "--json").stdout)[0]["bytes"]
    removed = run("gc", "--root", root, "--max-size", 2 * one, "--json")
    assert [e["key"][0] for e in json.loads(removed.stdout)] == ["a"]
    assert "removed 2 engines" in run("gc", "--root", root, "--max-size", 0).output
    assert json.loads(run("ls", "--root", root, "--json").stdout) == []


_HOLD = """
import sys
from contextlib import ExitStack
from pathlib import Path
from engines.compile.cache import TEMPORARY, cached_build
from graphs.base.scratch import scratch_folder

def build(folder):
    (folder / "part").write_text("x")
    print("building", flush=True)
    sys.stdin.read()

with ExitStack() as held:
    for prefix in TEMPORARY:
        (held.enter_context(scratch_folder(prefix)) / "part").write_text("x")
    cached_build(Path(sys.argv[1]), sys.argv[2] * 64, Path(sys.argv[1]), build)
"""


def test_gc_removes_what_killed_commands_left_and_nothing_that_lives(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    (temporary / ".ugsep-results").mkdir()  # not ours
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))

    def start(key: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", _HOLD, str(root), key], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            cwd=Path(__file__).parents[3], env={**os.environ, "TMPDIR": str(temporary)},
        )  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "building\n"
        return process

    def parts() -> set[Path]:
        return {*temporary.rglob("part"), *root.glob(".*/engine/part")}

    with start("d") as living:
        try:
            kept = parts()
            assert len(kept) == len(TEMPORARY) + 1
            with start("e") as killed:
                killed.kill()
            assert len(parts()) == 2 * len(kept), "a killed process cannot clean up"
            assert run("gc", "--root", root).exit_code == 0
            assert parts() == kept
        finally:
            living.kill()
    assert run("gc", "--root", root).exit_code == 0
    assert parts() == set()
    assert [p.name for p in temporary.iterdir()] == [".ugsep-results"]
    assert len(json.loads(run("ls", "--root", root, "--json").stdout)) == 3
    assert "killed" in run("gc", "--help").output


def test_verify_fails_with_status_1_on_damage_and_gc_removes_it(root: Path) -> None:
    assert run("verify", "--root", root).exit_code == 0
    damaged = root / ("b" * 64) / "engine" / "a.bin"
    damaged.write_bytes(b"x" + damaged.read_bytes()[1:])
    result = run("verify", "--root", root)
    assert result.exit_code == 1
    assert "1 of 3 engines are damaged" in result.stderr
    assert "rebuild" not in result.stderr  # a cached engine belongs to no bundle
    assert result.stderr.count("\n") == 1
    listed = run("verify", "--root", root, "--json")
    assert [bool(e["problem"]) for e in json.loads(listed.stdout)] == [False, True, False]
    assert listed.exit_code == 1
    assert "removed 1 engines" in run("gc", "--root", root).output
    assert run("verify", "--root", root).exit_code == 0


def test_gc_leaves_folders_that_are_no_entries(root: Path, tmp_path: Path) -> None:
    """A slip in --root must not cost a folder of bundles."""
    (root / "zenith").mkdir()
    (root / "zenith" / "manifest.json").write_text("{}")
    (tmp_path / "other").mkdir()
    (root / ("d" * 64)).symlink_to(tmp_path / "other")
    assert "removed 3 engines" in run("gc", "--root", root, "--max-size", 0).output
    assert (root / "zenith" / "manifest.json").read_text() == "{}"
    assert (root / ("d" * 64)).is_symlink()


def test_an_empty_cache_is_fine_and_a_wrong_root_is_not(tmp_path: Path) -> None:
    assert json.loads(run("ls", "--json", env={"XDG_CACHE_HOME": str(tmp_path)}).stdout) == []
    result = run("ls", "--root", tmp_path / "none")
    assert (result.exit_code, "is not a directory" in result.stderr) == (2, True)


@pytest.mark.parametrize(
    ("text", "size"), [("0", 0), ("500", 500), ("1.5K", 1536), ("2m", 2 << 20), ("3 GiB", 3 << 30), ("1TB", 1 << 40)]
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "x", "-1", "3X", "1e9", "10 G B", "9" * 400])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UgsepError, match="is not a valid size"):
        parse_size(text)
