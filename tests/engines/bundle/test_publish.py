import errno
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from engines.backends.built_engine import BuiltEngine
from engines.backends.contract import Availability
from engines.bundle import load as loading
from engines.bundle import publish as publishing
from engines.bundle.bundle import Bundle
from engines.bundle.load import compare_versions, load_engine
from engines.bundle.manifest import Manifest, read_manifest, write_manifest
from engines.bundle.publish import publish
from graphs.base.errors import UgsepError
from tests.engines.engine_records import tiny_engine
from tests.manifests import edit_raw


def _write(directory: Path, text: str) -> None:
    with publish(directory) as work:
        (work / "engines").mkdir()
        (work / "engines" / "a.bin").write_text(text)
        write_manifest(work, Manifest("tiny", "make engines", 21, (tiny_engine("engines", "a.bin"),)))


def _leftovers(directory: Path) -> list[str]:
    return sorted(p.name for p in directory.parent.iterdir() if ".building-" in p.name or ".retired-" in p.name)


def test_publish_replaces_the_old_bundle_whole(tmp_path: Path) -> None:
    target = tmp_path / "build" / "tiny"
    _write(target, "old")
    (target / "stray").write_text("from the old bundle")
    _write(target, "new")
    assert (target / "engines" / "a.bin").read_text() == "new"
    assert not (target / "stray").exists()
    assert Bundle.open(target).manifest.model == "tiny"
    assert _leftovers(target) == []


def test_publish_without_exchange_of_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publishing, "_exchange", lambda first, second: False)
    _write(tmp_path / "tiny", "old")
    _write(tmp_path / "tiny", "new")
    assert (tmp_path / "tiny" / "engines" / "a.bin").read_text() == "new"
    assert _leftovers(tmp_path / "tiny") == []


def test_a_bundle_left_between_two_renames_is_given_back(tmp_path: Path) -> None:
    target = tmp_path / "tiny"
    _write(target, "old")
    target.rename(tmp_path / ".tiny.retired-old")
    with pytest.raises(RuntimeError), publish(target):
        raise RuntimeError("the next build fails too")
    assert (target / "engines" / "a.bin").read_text() == "old"


def _fail_half_way(target: Path, error: OSError) -> None:
    with publish(target) as work:
        (work / "half").write_text("half")
        raise error


@pytest.mark.parametrize(
    ("number", "says"),
    [(errno.ENOSPC, "disk is full"), (errno.EROFS, "not writable"), (errno.EACCES, "not writable")],
)
def test_a_failed_build_leaves_the_old_bundle(tmp_path: Path, number: int, says: str) -> None:
    target = tmp_path / "tiny"
    _write(target, "old")
    with pytest.raises(UgsepError, match=says):
        _fail_half_way(target, OSError(number, os.strerror(number)))
    assert (target / "engines" / "a.bin").read_text() == "old"
    assert _leftovers(target) == []


def test_a_read_only_directory(tmp_path: Path) -> None:
    # In a child process that becomes nobody, because root ignores permission bits.
    holder = Path(tempfile.mkdtemp(dir="/tmp"))
    holder.chmod(0o555)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            if os.getuid() == 0:
                os.setuid(65534)
            with publish(holder / "tiny"):
                status = 2
        except UgsepError as error:
            status = 0 if "not writable" in str(error) and "\n" not in str(error) else 3
        finally:
            os._exit(status)
    _, code = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(code) == 0
    assert list(holder.iterdir()) == []
    holder.rmdir()


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "tiny").write_text("mine")
    with pytest.raises(UgsepError, match="a file is in the way"), publish(tmp_path / "tiny"):
        pytest.fail("the block must not run")


def test_a_directory_that_is_no_bundle_is_never_replaced(tmp_path: Path) -> None:
    target = tmp_path / "src"
    target.mkdir()
    (target / "thesis.txt").write_text("years of work")
    (target / "manifest.json").write_text("{}")  # of a web page
    with pytest.raises(UgsepError, match="has files but is not a bundle"), publish(target):
        pytest.fail("the block must not run")
    assert (target / "thesis.txt").read_text() == "years of work"
    (target / "thesis.txt").unlink()
    (target / "manifest.json").unlink()
    _write(target, "an empty directory is free to take")
    assert Bundle.open(target).manifest.model == "tiny"


def test_a_link_to_a_bundle_stays_a_link(tmp_path: Path) -> None:
    _write(tmp_path / "v1", "old")
    (tmp_path / "current").symlink_to("v1")
    _write(tmp_path / "current", "new")
    assert (tmp_path / "current").is_symlink()
    assert (tmp_path / "v1" / "engines" / "a.bin").read_text() == "new"
    assert _leftovers(tmp_path / "v1") == []
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UgsepError, match="points to itself"), publish(tmp_path / "loop"):
        pytest.fail("the block must not run")


_BUILD_FOREVER = """
import sys, time
from pathlib import Path
from engines.bundle.publish import publish
with publish(Path(sys.argv[1])) as work:
    (work / "half").write_text("half")
    print("started", flush=True)
    time.sleep(60)
"""


def test_a_killed_build_leaves_the_old_bundle_and_is_cleaned(tmp_path: Path) -> None:
    target = tmp_path / "tiny"
    _write(target, "old")
    command = [sys.executable, "-c", _BUILD_FOREVER, str(target)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        with pytest.raises(UgsepError, match="another process is building here"), publish(target):
            pytest.fail("the block must not run")
        process.kill()
    assert len(_leftovers(target)) == 1
    assert (target / "engines" / "a.bin").read_text() == "old"
    _write(target, "new")
    assert (target / "engines" / "a.bin").read_text() == "new"
    assert _leftovers(target) == []


def test_bundles_move(tmp_path: Path) -> None:
    _write(tmp_path / "here", "weights")
    (tmp_path / "here").rename(tmp_path / "there")
    assert Bundle.open(tmp_path / "there").manifest.model == "tiny"


def test_a_read_only_bundle_opens(tmp_path: Path) -> None:
    _write(tmp_path / "tiny", "weights")
    for path in [*(tmp_path / "tiny").rglob("*"), tmp_path / "tiny"]:
        path.chmod(0o555)
    assert Bundle.open(tmp_path / "tiny").manifest.model == "tiny"
    for path in [tmp_path / "tiny", *(tmp_path / "tiny").rglob("*")]:
        path.chmod(0o755)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda p: p.write_bytes(b"Weights"), "sha256 [0-9a-f]{16} but the manifest says [0-9a-f]{16}"),
        (lambda p: p.write_bytes(b"weight"), "6 bytes but the manifest says 7"),
        (lambda p: p.unlink(), "missing from the bundle"),
        (lambda p: (p.unlink(), os.mkfifo(p)), "a.bin: a pipe, not a file"),
        (lambda p: (p.unlink(), p.mkdir()), "a.bin: a folder, not a file"),
    ],
)
def test_damage_is_named_with_the_command_that_rebuilds(tmp_path: Path, damage, says: str) -> None:
    _write(tmp_path / "tiny", "weights")
    damage(tmp_path / "tiny" / "engines" / "a.bin")
    with pytest.raises(UgsepError, match=says + ".*rebuild: make engines"):
        Bundle.open(tmp_path / "tiny")


def test_a_link_out_of_the_bundle_is_refused(tmp_path: Path) -> None:
    _write(tmp_path / "tiny", "weights")
    inside = tmp_path / "tiny" / "engines" / "a.bin"
    inside.rename(tmp_path / "outside.bin")
    inside.symlink_to(tmp_path / "outside.bin")
    with pytest.raises(UgsepError, match="a link leads out of the bundle"):
        Bundle.open(tmp_path / "tiny")


def test_an_engine_of_an_unknown_backend(tmp_path: Path) -> None:
    _write(tmp_path / "tiny", "weights")
    edit_raw(tmp_path / "tiny", lambda raw: raw["engines"][0]["built"].update(backend="onnxrantime"))
    manifest = read_manifest(tmp_path / "tiny")
    with pytest.raises(UgsepError, match="did you mean 'onnxruntime'"):
        load_engine(tmp_path / "tiny", manifest, manifest.engines[0])


def test_versions_are_compared_tool_by_tool() -> None:
    lines = compare_versions({"onnx": "1", "onnxruntime": "2", "gone": "3"}, {"onnx": "1", "onnxruntime": "9"})
    assert lines == ["onnxruntime 2 (bundle) != 9 (here)"]


def test_kernels_compiled_while_serving_are_kept_by_the_engine_s_contents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Backends that compile while serving need a GPU, so this one only records the path it is given."""
    given: list[Path | None] = []

    def load(directory: Path, built: BuiltEngine, threads: int | None, runtime_cache: Path | None) -> None:
        given.append(runtime_cache)

    recorder = SimpleNamespace(probe=lambda: Availability(True, True), load=load)
    monkeypatch.setattr(loading, "find_backend", lambda name: recorder)
    for place, text in (("one", "old"), ("two", "old"), ("three", "new")):
        _write(tmp_path / place, text)
        manifest = read_manifest(tmp_path / place)
        load_engine(tmp_path / place, manifest, manifest.engines[0], None, tmp_path / "kernels")
        load_engine(tmp_path / place, manifest, manifest.engines[0])
    moved_from, off, moved_to, _, rebuilt, _ = given
    assert off is None
    assert moved_from is not None
    assert rebuilt is not None
    assert moved_from.parent == tmp_path / "kernels"
    assert moved_to == moved_from, "the same engine finds its kernels wherever the bundle stands"
    assert rebuilt != moved_from


@pytest.mark.parametrize(("umask", "file", "folder"), [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700)])
def test_all_files_of_a_bundle_have_one_mode(tmp_path: Path, umask: int, file: int, folder: int) -> None:
    before = os.umask(umask)
    try:
        with publish(tmp_path / "tiny") as work:
            (work / "engines").mkdir(mode=0o700)
            for name, mode in (("a.bin", 0o600), ("b.bin", 0o666)):
                (work / "engines" / name).write_text("x")
                (work / "engines" / name).chmod(mode)
    finally:
        os.umask(before)
    paths = [tmp_path / "tiny", *(tmp_path / "tiny").rglob("*")]
    assert {p.stat().st_mode & 0o777 for p in paths if p.is_file()} == {file}
    assert {p.stat().st_mode & 0o777 for p in paths if p.is_dir()} == {folder}
