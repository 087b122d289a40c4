import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest

from engines.bundle.digest import UNSEALED
from engines.bundle.files import FileEntry, hash_file, unlisted_files, verify_files
from engines.bundle.manifest import BatchTiming, Manifest, engine_for, read_manifest, write_manifest
from graphs.base.errors import UgsepError
from tests.engines.engine_records import tiny_engine
from tests.manifests import write_raw


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    (tmp_path / "engines").mkdir()
    (tmp_path / "engines" / "a.bin").write_text("weights")
    write_manifest(tmp_path, _manifest())
    return tmp_path


def _manifest() -> Manifest:
    return Manifest(
        "tiny",
        "make engines MODEL=tiny",
        21,
        (tiny_engine("engines", "a.bin"),),
        tools={"onnx": "1.23"},
        host={"isa": "zen4"},
        choice={"item": "engines"},
        calibration="ab" * 32,
        synthetic=True,
        reasons={"item": "0.5 ms"},
        content_key="cd" * 32,
        passed=True,
        batching=(BatchTiming(2, 1, 0.5, 0.25), BatchTiming(2, 4, 1.0, 0.8)),
    )


def _edit(bundle: Path, *keys: Any, value: Any) -> None:
    raw = json.loads((bundle / "manifest.json").read_text())
    inner = raw
    for key in keys[:-1]:
        inner = inner[key]
    if value is None:
        del inner[keys[-1]]
    else:
        inner[keys[-1]] = value
    write_raw(bundle, raw)


def test_what_is_written_is_read_back(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    assert manifest.files == {"engines/a.bin": hash_file(bundle / "engines" / "a.bin")}
    assert manifest.engines == _manifest().engines
    assert dataclasses.replace(manifest, files={}, digest=UNSEALED) == _manifest()


def test_the_same_bundle_has_the_same_manifest_elsewhere(bundle: Path, tmp_path: Path) -> None:
    before = (bundle / "manifest.json").read_bytes()
    write_manifest(bundle, _manifest())
    assert (bundle / "manifest.json").read_bytes() == before
    assert str(tmp_path).encode() not in before


TIMING = {"users": 2, "candidates": 1, "separate_ms": 1.0, "batched_ms": 1.0}
ENTRY = {"bytes": 7, "sha256": "0" * 64}


@pytest.mark.parametrize(
    ("keys", "value", "says"),
    [
        (("version",), 5, "version 5 is newer than 4.*upgrade"),
        (("version",), 3, "manifest version is 3; this ugsep reads 4; build the bundle again"),
        (("version",), 0, "manifest version is 0"),
        (("version",), "1", 'manifest version is "1"'),
        (("version",), None, "manifest version is null"),
        (("model",), 7, "manifest: model is 7, not a string"),
        (("opset",), True, "manifest: opset is true, not an integer"),
        (("reasons", "item"), 1, "manifest: reasons.item is 1, not a string"),
        (("content_key",), None, "manifest: 'content_key' is missing"),
        (("passed",), 1, "manifest: passed is 1, not a boolean"),
        (("synthetic",), 1, "manifest: synthetic is 1, not a boolean"),
        (("engines",), {}, "manifest: engines is {}, not a list"),
        (("files",), [], "manifest: files is .., not an object"),
        (("tools",), None, "manifest: 'tools' is missing"),
        (("surprise",), 1, "manifest: unknown setting 'surprise'"),
        (("engines", 0, "built", "side"), "both", 'side is "both", not one of full, user, item'),
        (("engines", 0, "built", "weights", 0, "status"), "lost", 'status is "lost"'),
        (("engines", 0, "built", "inputs", 0, "shape"), ["n", 1.5], "not an integer or a string"),
        (("engines", 0, "built", "inputs", 0, "shape"), ["n", -1], "shape .* is out of range"),
        (("engines", 0, "built", "inputs", 0, "shape"), ["n", 1 << 40], "shape .* is out of range"),
        (("engines", 0, "built", "inputs", 0, "shape"), [1 << 20, 1 << 20], "shape .* is out of range"),
        (("engines", 0, "built", "outputs", 0, "shape"), [1] * 9, "shape .* is out of range"),
        (("engines", 0, "built", "inputs", 0, "dtype"), "float33", 'dtype "float33" is none that engines have'),
        (("engines", 0, "built", "outputs", 0, "dtype"), "O", 'dtype "O" is none that engines have'),
        (("engines", 0, "built", "profiles", 0, "users"), {"min": 4, "opt": 1, "max": 1}, "need 1 <= min"),
        (("engines", 0, "built", "profiles", 0, "users", "max"), 1 << 40, "profile has .* rows, out of range"),
        (("engines", 0, "built", "files"), ["b.bin"], "'engines/b.bin' is not among the hashed files"),
        (("engines", 0, "built", "files"), ["../../b"], "leaves the bundle"),
        (("engines", 0, "directory"), "/etc", "leaves the bundle"),
        (("engines", 0, "directory"), "..", "leaves the bundle"),
        (("choice",), {"item": "elsewhere"}, "chosen item engine 'elsewhere' is not in the bundle"),
        (("files", "../a.bin"), ENTRY, "leaves the bundle"),
        (("files", "/etc/passwd"), ENTRY, "leaves the bundle"),
        (("files", "a/../../b"), ENTRY, "leaves the bundle"),
        (("files", "C:evil"), ENTRY, "leaves the bundle"),
        (("files", "a\\b"), ENTRY, "leaves the bundle"),
        (("files", ""), ENTRY, "leaves the bundle"),
        (("files", "engines/a.bin", "bytes"), -1, "size -1 is out of range"),
        (("files", "engines/a.bin", "bytes"), 1 << 60, "size .* is out of range"),
        (("files", "engines/a.bin", "sha256"), "XYZ", "no valid sha256"),
        (("engines", 0, "built", "session"), {"threads": 10**7}, "setting 'threads' is 10000000, out of range"),
        (("engines", 0, "built", "session"), {"threads": -1}, "setting 'threads' is -1"),
        (("engines", 0, "built", "session"), {"cache": "/etc"}, "setting 'cache' is \"/etc\""),
        (("files", "\ud800"), ENTRY, "cannot be printed"),
        (("model",), "\ud800", "cannot be printed"),
        (("rebuild",), "make\n\x1b[2J", "cannot be printed"),
        (("sur\x1b[2J\ud800prise",), 1, r"a name in manifest is .sur\\u001b\[2J\\ud800prise., which holds"),
        (("opset",), 10**400, "out of range"),
        (("batching",), None, "manifest: 'batching' is missing"),
        (("batching", 0, "users"), 1, "batching of 1 users x 1 candidates is out of range"),
        (("batching", 0, "users"), 1 << 40, "users x 1 candidates is out of range"),
        (("batching", 0, "users"), 3, "batching of 2 users x 4 candidates is out of order or given twice"),
        (("batching", 0, "candidates"), 4, "batching of 2 users x 4 candidates is out of order or given twice"),
        (("batching", 0, "candidates"), 0, "batching of 2 users x 0 candidates has 0 rows, out of range"),
        (("batching", 0, "candidates"), 1.5, "batching.0..candidates is 1.5, not an integer"),
        (("batching", 1, "batched_ms"), 0, "batching of 2 users x 4 candidates took 0.0 ms, out of range"),
        (("batching", 1, "separate_ms"), -1.0, "took -1.0 ms, out of range"),
        (("batching", 1, "separate_ms"), float("nan"), "NaN is not a JSON number"),
        (("batching", 1, "batched_ms"), 1e9, "took 1000000000.0 ms, out of range"),
        (("batching",), [[2, 1, 0.5, 0.25]], "batching.0. is .*, not an object"),
        (("batching",), [TIMING] * 1025, "batching has 1025 sizes, out of range"),
        (("engines", 0, "built", "figures"), {"x": 10**400}, "figures.x is an integer of 1329 bits, which is out"),
        (("engines", 0, "built", "figures"), {"x": float("nan")}, "NaN is not a JSON number"),
        (("engines", 0, "built", "figures"), {"x": float("inf")}, "Infinity is not a JSON number"),
    ],
)
def test_a_manifest_that_cannot_be_trusted_is_refused(bundle: Path, keys: Any, value: Any, says: str) -> None:
    _edit(bundle, *keys, value=value)
    with pytest.raises(UgsepError, match=says) as error:
        read_manifest(bundle)
    assert "\n" not in str(error.value)


TWICE = '{"version": 4, "model": "a", "model": "b"}'


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, '{"version": 4}', TWICE])
def test_no_manifest_at_all(bundle: Path, text: str) -> None:
    (bundle / "manifest.json").write_text(text)
    with pytest.raises(UgsepError, match="build the bundle again"):
        read_manifest(bundle)


def test_a_directory_without_a_manifest(tmp_path: Path) -> None:
    for directory in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(UgsepError, match=r"no manifest.json, so not a bundle"):
            read_manifest(directory)


def test_a_manifest_that_is_no_file_is_refused_and_not_waited_for(bundle: Path) -> None:
    path = bundle / "manifest.json"
    for make, says in (
        (os.mkfifo, "manifest.json: a pipe, not a file"),
        (os.mkdir, "manifest.json: a folder, not a file"),
        (_link_to_itself, "cannot be read"),
    ):
        path.rmdir() if path.is_dir() else path.unlink()
        make(path)
        with pytest.raises(UgsepError, match=says):
            read_manifest(bundle)


def _link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


def test_a_file_that_cannot_be_read_is_refused_in_one_line(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    engine = bundle / "engines" / "a.bin"
    engine.unlink()
    _link_to_itself(engine)
    with pytest.raises(UgsepError, match=r"a.bin: cannot be read .*rebuild: make engines"):
        verify_files(bundle, manifest.files, manifest.rebuild)
    too_long = dataclasses.replace(manifest, files={"x" * 5000: FileEntry(1, "0" * 64)})
    with pytest.raises(UgsepError, match="cannot be read"):
        verify_files(bundle, too_long.files)


def test_files_beside_those_of_the_manifest_are_found(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    assert unlisted_files(bundle, manifest.files) == []
    (bundle / "engines" / "b.so").write_text("x")
    (bundle / "out").symlink_to("/")
    assert unlisted_files(bundle, manifest.files) == ["engines/b.so", "out"]


def test_engines_are_found_by_side_backend_and_precision(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    assert engine_for(manifest, "item") is manifest.engines[0]
    assert engine_for(manifest, "item", "onnxruntime", "w8a32") is manifest.engines[0]
    with pytest.raises(UgsepError, match=r"no user engine.*has item/onnxruntime/w8a32; build it: make engines"):
        engine_for(manifest, "user")
    with pytest.raises(UgsepError, match="no item engine with backend 'openvino' and precision 'w8a32'; it has"):
        engine_for(manifest, "item", "openvino", "w8a32")
    with pytest.raises(UgsepError, match="no item engine with precision 'fp16'; it has"):
        engine_for(manifest, "item", precision="fp16")
