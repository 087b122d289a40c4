import dataclasses
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from engines.backends.build import build_engine
from engines.backends.built_engine import BuiltEngine
from engines.backends.engine_spec import BuildSpec, Profile, Rows
from engines.backends.onnxruntime import backend as ort_backend
from engines.compile.cache import cached_build, collect, default_root, engine_key, list_entries
from graphs.base.errors import UgsepError
from tests.engines.engine_records import tiny_engine
from tests.export.lowering_graphs import FFN_SHAPE, ffn

TOOLS = {"onnxruntime": "1.31.1", "onnx": "1.23"}
PROFILES = (Profile(Rows(1, 1, 4), Rows(1, 64, 256)), Profile(Rows(1, 1, 4), Rows(1, 512, 1024)))


@pytest.fixture
def spec(tmp_path: Path) -> BuildSpec:
    source = ffn(tmp_path / "here" / "full.onnx", np.random.default_rng(), True, "gelu")
    assert (tmp_path / "here" / "full.onnx.data").exists()
    return BuildSpec("full", source, "w8a32", PROFILES, {"threads": 1, "spinning": False})


def _key(spec: BuildSpec, **changes: Any) -> str:
    return engine_key(**({"backend": "onnxruntime", "spec": spec, "tools": TOOLS, "target": "zen4"} | changes))


def _edit(spec: BuildSpec, change: Callable[[onnx.ModelProto], None]) -> BuildSpec:
    model = onnx.load(spec.onnx)
    change(model)
    onnx.save(model, spec.onnx)
    return spec


def _flip_weight(model: onnx.ModelProto) -> None:
    tensor = next(t for t in model.graph.initializer if t.name == "up.weight")
    data = bytearray(tensor.raw_data)
    data[7] ^= 1
    tensor.raw_data = bytes(data)


def _rename(model: onnx.ModelProto) -> None:
    model.graph.output[0].name = "buy"
    model.graph.node[-1].output[0] = "buy"


def _attribute(model: onnx.ModelProto) -> None:
    next(n for n in model.graph.node if n.op_type == "LayerNormalization").attribute[0].i = 2


def _static(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4


@pytest.mark.parametrize("change", [_flip_weight, _rename, _attribute, _static])
def test_a_changed_graph_misses(spec: BuildSpec, change: Callable[[onnx.ModelProto], None]) -> None:
    before = _key(spec)
    assert _key(_edit(spec, lambda model: None)) == before  # inline instead of external data: the same graph
    assert _key(_edit(spec, change)) != before


@pytest.mark.parametrize(
    "change",
    [
        {"backend": "openvino"},
        {"target": "zen5"},
        {"tools": TOOLS | {"onnx": "1.24"}},
        {"tools": {"onnx": "1.23"}},
        {"side": "item"},
        {"precision": "w8a8-dynamic"},
        {"profiles": PROFILES[:1]},
        {"profiles": PROFILES[::-1]},
        {"profiles": (Profile(Rows(1, 1, 5), Rows(1, 64, 256)), PROFILES[1])},
        {"profiles": (Profile(Rows(1, 1, 4), Rows(1, 32, 256)), PROFILES[1])},
        {"profiles": (Profile(Rows(1, 1, 4), Rows(2, 64, 256)), PROFILES[1])},
        {"options": {"threads": 2, "spinning": False}},
        {"options": {"threads": True, "spinning": False}},
        {"options": {"threads": 1}},
    ],
)
def test_every_part_of_the_key_matters(spec: BuildSpec, change: dict[str, Any]) -> None:
    in_spec = {k: v for k, v in change.items() if k in {f.name for f in dataclasses.fields(BuildSpec)}}
    outside = {k: v for k, v in change.items() if k not in in_spec}
    assert _key(dataclasses.replace(spec, **in_spec), **outside) != _key(spec)


def test_a_moved_directory_hits(spec: BuildSpec, tmp_path: Path) -> None:
    before = _key(spec)
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    os.utime(tmp_path / "there" / "full.onnx", (1, 1))
    moved = dataclasses.replace(spec, onnx=tmp_path / "there" / "full.onnx")
    reordered = dataclasses.replace(moved, options=dict(reversed(list(spec.options.items()))))
    assert _key(reordered, tools=dict(reversed(list(TOOLS.items())))) == before


def _builder(text: str = "weights", calls: list[str] | None = None) -> Callable[[Path], BuiltEngine]:
    def build(directory: Path) -> BuiltEngine:
        (directory / "a.bin").write_text(text)
        if calls is not None:
            calls.append(text)
        return tiny_engine(".", "a.bin").built

    return build


def test_the_second_build_is_a_copy(tmp_path: Path) -> None:
    calls: list[str] = []
    first = cached_build(tmp_path / "cache", "k" * 64, tmp_path / "a", _builder(calls=calls))
    second = cached_build(tmp_path / "cache", "k" * 64, tmp_path / "b", _builder(calls=calls))
    assert (first[1], second[1], len(calls)) == (False, True, 1)
    assert first[0] == second[0]
    assert (tmp_path / "b" / "a.bin").read_text() == "weights"
    (tmp_path / "b" / "a.bin").write_text("changed by the user")
    assert (tmp_path / "a" / "a.bin").read_text() == "weights"


def test_a_real_engine_from_the_cache_scores(spec: BuildSpec, tmp_path: Path) -> None:
    key = _key(spec)
    for folder in ("first", "second"):
        built, cached = cached_build(
            tmp_path / "cache",
            key,
            tmp_path / folder,
            lambda out: build_engine(ort_backend, spec, out, lambda _: None),
        )
        assert cached == (folder == "second")
        x = np.ones((3, FFN_SHAPE[0], FFN_SHAPE[1]), np.float32)
        assert ort_backend.load(tmp_path / folder, built).infer({"x": x})["click"].shape == (3,)


def test_a_damaged_entry_is_built_again(tmp_path: Path) -> None:
    root, calls = tmp_path / "cache", []
    cached_build(root, "k" * 64, tmp_path / "a", _builder(calls=calls))
    (root / ("k" * 64) / "engine" / "a.bin").write_text("Weights")
    (entry,) = list_entries(root, verify=True)
    assert "sha256" in entry.problem
    assert not cached_build(root, "k" * 64, tmp_path / "b", _builder(calls=calls))[1]
    assert len(calls) == 2
    assert (tmp_path / "b" / "a.bin").read_text() == "weights"


def test_a_failed_build_is_not_cached(tmp_path: Path) -> None:
    def fail(directory: Path) -> BuiltEngine:
        (directory / "half").write_text("half")
        raise UgsepError("no")

    with pytest.raises(UgsepError, match="no"):
        cached_build(tmp_path / "cache", "k" * 64, tmp_path / "a", fail)
    assert [p.name for p in (tmp_path / "cache").iterdir() if p.suffix != ".lock"] == []


def test_one_key_is_built_once_and_others_go_on(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    started, release, calls, waits = threading.Event(), threading.Event(), [], []

    def slow(directory: Path) -> BuiltEngine:
        started.set()
        assert release.wait(20)
        return _builder("slow", calls)(directory)

    results: dict[str, bool] = {}

    waiting = threading.Event()

    def wait(message: str) -> None:
        waits.append(message)
        waiting.set()

    def run(name: str, build: Callable[[Path], BuiltEngine]) -> None:
        results[name] = cached_build(root, "k" * 64, tmp_path / name, build, wait)[1]

    first = threading.Thread(target=run, args=("first", slow))
    first.start()
    assert started.wait(20)
    second = threading.Thread(target=run, args=("second", _builder("second", calls)))
    second.start()
    cached_build(root, "o" * 64, tmp_path / "other", _builder("other", calls))  # does not wait
    assert calls == ["other"]
    assert waiting.wait(20)
    release.set()
    first.join()
    second.join()
    assert results == {"first": False, "second": True}
    assert calls == ["other", "slow"]
    assert waits == ["waiting for another process that is building kkkkkkkkkkkk"]


_BUILD_ONCE = """
import sys, time
from pathlib import Path
from engines.compile.cache import cached_build
from tests.engines.engine_records import tiny_engine
root, out, log = map(Path, sys.argv[1:])
def build(directory):
    with log.open("a") as lines:
        lines.write("built\\n")
    print("building", flush=True)
    while not log.with_name("waiting").exists():  # however long the other process takes to start
        time.sleep(0.01)
    (directory / "a.bin").write_text("weights")
    return tiny_engine(".", "a.bin").built
def wait(message):
    print("waiting", flush=True)
    log.with_name("waiting").touch()
print(cached_build(root, "k" * 64, out, build, wait)[1], flush=True)
"""


def test_two_processes_that_want_one_key_build_it_once(tmp_path: Path) -> None:
    def start(name: str) -> subprocess.Popen[str]:
        arguments = [str(tmp_path / part) for part in ("cache", name, "log")]
        command = [sys.executable, "-c", _BUILD_ONCE, *arguments]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3])

    with start("first") as first, start("second") as second:
        said = sorted(process.communicate(timeout=60)[0].split() for process in (first, second))
    assert said == [["building", "False"], ["waiting", "True"]]
    assert (tmp_path / "log").read_text() == "built\n"
    for name in ("first", "second"):
        assert (tmp_path / name / "a.bin").read_text() == "weights"


def test_a_process_killed_while_building_leaves_the_key_to_the_next(tmp_path: Path) -> None:
    arguments = [str(tmp_path / part) for part in ("cache", "first", "log")]
    with subprocess.Popen(
        [sys.executable, "-c", _BUILD_ONCE, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "building\n"
        process.kill()
    cache, other = tmp_path / "cache", tmp_path / "cache" / ".oooooooooooooooo.building-x"
    other.mkdir()  # of another key, which a living process may be building
    assert len(list(cache.glob(".k*.building-*"))) == 1
    assert not cached_build(cache, "k" * 64, tmp_path / "second", _builder())[1]
    assert list(cache.glob(".*.building-*")) == [other]
    assert cached_build(cache, "k" * 64, tmp_path / "third", _builder())[1]


def test_processes_that_collect_list_and_build_at_once_disturb_none_of_them(tmp_path: Path) -> None:
    """An entry is there whole or not at all, whoever looks at it while others remove it or build it again."""
    root, keys = tmp_path / "cache", [letter * 64 for letter in "abcdef"]
    built, failures = threading.Event(), list[BaseException]()

    def repeat(step: Callable[[], None]) -> None:
        try:
            while not built.is_set():
                step()
                time.sleep(0.001)  # a turn for those that wait for a lock
        except BaseException as error:
            failures.append(error)

    def look() -> None:
        assert [entry.problem for entry in list_entries(root, verify=True) if entry.problem] == []

    collectors = [threading.Thread(target=repeat, args=(lambda: collect(root, 0),)) for _ in range(2)]
    threads = [*collectors, threading.Thread(target=repeat, args=(look,))]
    root.mkdir()
    for thread in threads:
        thread.start()
    try:
        for turn in range(10):
            for key in keys:
                out = tmp_path / f"{turn}{key[0]}"
                cached_build(root, key, out, _builder())
                assert (out / "a.bin").read_text() == "weights"
    finally:
        built.set()
        for thread in threads:
            thread.join()
    assert not failures
    collect(root, 0)
    assert not [path for path in root.iterdir() if path.is_dir()]


def test_collect_keeps_the_recently_used_and_drops_the_damaged(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    for age, name in enumerate("abcd"):
        cached_build(root, name * 64, tmp_path / name, _builder())
        os.utime(root / (name * 64), (1e9 - age, 1e9 - age))
    (root / ("a" * 64) / "engine" / "a.bin").unlink()
    size = list_entries(root)[-2].bytes
    assert [e.key[0] for e in list_entries(root)] == ["d", "c", "b", "a"]
    cached_build(root, "d" * 64, tmp_path / "again", _builder())  # used just now
    removed = collect(root, max_bytes=2 * size)
    assert {e.key[0] for e in removed} == {"a", "c"}
    assert [e.key[0] for e in list_entries(root, verify=True)] == ["b", "d"]
    assert [e.problem for e in list_entries(root, verify=True)] == ["", ""]


def test_an_empty_or_missing_cache(tmp_path: Path) -> None:
    assert list_entries(tmp_path / "none") == []
    assert collect(tmp_path / "none", 0) == []
    (tmp_path / "cache" / ("z" * 64)).mkdir(parents=True)
    (entry,) = list_entries(tmp_path / "cache")
    assert "no engine.json" in entry.problem


def test_a_cache_that_cannot_be_used_says_where_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UgsepError, match=r"cannot create an engine cache \(Not a directory\); .* --no-cache"):
        cached_build(tmp_path / "file" / "engines", "a" * 64, tmp_path / "out", _builder())
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(UgsepError, match="the engine cache is not writable; set XDG_CACHE_HOME"):
        cached_build(tmp_path / "cache", "a" * 64, tmp_path / "out", _builder())


def test_an_entry_that_names_another_directory_is_built_again(tmp_path: Path) -> None:
    calls: list[str] = []
    cached_build(tmp_path / "cache", "a" * 64, tmp_path / "one", _builder(calls=calls))
    record = tmp_path / "cache" / ("a" * 64) / "engine.json"
    raw = json.loads(record.read_text())
    raw["files"] = {f"../other/{name}": entry for name, entry in raw["files"].items()}
    raw["built"]["files"] = [*raw["files"]]
    (record.parent / "engine").rename(record.parent / "other")
    record.write_text(json.dumps(raw))
    _, found = cached_build(tmp_path / "cache", "a" * 64, tmp_path / "two", _builder(calls=calls))
    assert (found, len(calls)) == (False, 2)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda raw: raw.update(surprise=1), "engine: unknown setting 'surprise'"),
        (lambda raw: raw.pop("files"), "engine: 'files' is missing"),
        (lambda raw: raw["files"]["a.bin"].update(bytes=-1), "size -1 is out of range"),
        (lambda raw: raw["built"].update(files=["b.bin"]), "engine file 'b.bin' is not among the hashed files"),
        (lambda raw: raw["built"].update(session={"cache": "/etc"}), "setting 'cache' is \"/etc\""),
    ],
)
def test_a_record_is_read_as_strictly_as_a_manifest(
    tmp_path: Path, change: Callable[[dict[str, Any]], Any], says: str
) -> None:
    cached_build(tmp_path / "cache", "a" * 64, tmp_path / "one", _builder())
    record = tmp_path / "cache" / ("a" * 64) / "engine.json"
    raw = json.loads(record.read_text())
    change(raw)
    record.write_text(json.dumps(raw))
    (entry,) = list_entries(tmp_path / "cache")
    assert says in entry.problem
    assert not cached_build(tmp_path / "cache", "a" * 64, tmp_path / "two", _builder())[1]


def test_default_root() -> None:
    assert default_root({"XDG_CACHE_HOME": "/somewhere"}) == Path("/somewhere/ugsep/engines")
    assert default_root({}).parts[-3:] == (".cache", "ugsep", "engines")


def test_without_a_home_the_cache_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")  # what pathlib raises for a user not in /etc/passwd

    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(UgsepError, match=r"no home directory for the engine cache; set XDG_CACHE_HOME .* --no-cache"):
        default_root({})
    assert default_root({"XDG_CACHE_HOME": "/caches"}) == Path("/caches/ugsep/engines")
