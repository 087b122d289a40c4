"""The wheel as a server installs it: a clean environment with ``ugsep[cpu]`` scores a bundle, ``serve`` serves it."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
import urllib.request
import zipfile
from pathlib import Path

import numpy as np
import pytest

from engines import Ranker
from engines.bundle.bundle import Bundle
from engines.bundle.fixtures import read_fixtures

ROOT = Path(__file__).parents[1]
ZENITH = ROOT / "build" / "zenith"
#: Bounds on a server: bytes of its environment, seconds to import and load a bundle, resident bytes after a request.
ENVIRONMENT_BYTES, LOAD_SECONDS, RESIDENT_BYTES = 250e6, 0.7, 130e6
SCORE = """
import json, sys, time
started = time.perf_counter()
from engines import Ranker
ranker = Ranker.from_bundle(sys.argv[1])
seconds = time.perf_counter() - started
import numpy as np
given = np.load(sys.argv[2])
user = {k[5:]: given[k] for k in given.files if k.startswith("user.")}
items = {k[5:]: given[k] for k in given.files if k.startswith("item.")}
scores = {k: v.tolist() for k, v in ranker.score(user, items).items()}
resident = next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmRSS")) * 1024
file = sys.modules["engines"].__file__
print(json.dumps({"scores": scores, "seconds": seconds, "resident": resident, "file": file}))
"""


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*map(str, command)], cwd=cwd, capture_output=True, text=True, check=True)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT, cwd=folder)
    return next(folder.glob("ugsep-*.whl"))


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the interpreter of a clean environment with ``ugsep[cpu]``."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    found = folder / "bin" / "python"
    command = [sys.executable, "-m", "pip", "--python", found, "install", "--quiet", "--no-compile"]
    run(*command, "--constraint", ROOT / "constraints.txt", f"{wheel}[cpu]", cwd=folder)
    return found


@pytest.mark.slow
def test_the_wheel_holds_recipes_and_templates_and_no_benchmarks(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    shipped = {str(p.relative_to(ROOT)) for p in (ROOT / "engines" / "recipes").rglob("*.yaml")}
    shipped |= {str(p.relative_to(ROOT)) for folder in ("graphs", "engines") for p in (ROOT / folder).rglob("*.html")}
    assert shipped <= set(names)
    assert {n.split("/")[0] for n in names if ".dist-info/" not in n} == {"graphs", "export", "quant", "engines"}


@pytest.mark.slow
def test_the_sdist_makes_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    """Who builds from the source distribution gets every recipe, template and page that the wheel has."""
    build = "import sys, setuptools.build_meta as b; print(b.build_sdist(sys.argv[1]))"
    name = run(sys.executable, "-c", build, tmp_path, cwd=ROOT).stdout.splitlines()[-1]
    with tarfile.open(tmp_path / name) as sdist:
        sdist.extractall(tmp_path, filter="data")
        sources = {n.split("/")[1] for n in sdist.getnames() if n.count("/") > 0}
    assert {"build", ".venv", "benchmarks"}.isdisjoint(sources)
    unpacked = tmp_path / name.removesuffix(".tar.gz")
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", tmp_path, unpacked, cwd=tmp_path)
    (again,) = tmp_path.glob("ugsep-*.whl")
    with zipfile.ZipFile(wheel) as one, zipfile.ZipFile(again) as other:
        names = {n for n in one.namelist() if ".dist-info/" not in n}
        assert names == {n for n in other.namelist() if ".dist-info/" not in n}
        assert [n for n in names if one.read(n) != other.read(n)] == []


@pytest.mark.slow
def test_a_server_s_environment_scores_a_bundle(python: Path, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """CI has built the bundle of zenith before; otherwise the tiny bundle has to keep the same bounds."""
    bundle = ZENITH if (ZENITH / "manifest.json").is_file() else request.getfixturevalue("built_bundle")
    (asked,) = Bundle.open(bundle).synthetic_requests(1, 9)
    inputs = tmp_path / "inputs.npz"
    columns = {"user": asked.user, "item": asked.items}
    np.savez(inputs, **{f"{side}.{name}": v for side, found in columns.items() for name, v in found.items()})
    runs = [json.loads(run(python, "-c", SCORE, bundle, inputs, cwd=tmp_path).stdout) for _ in range(5)]
    expected = Ranker.from_bundle(bundle).score(asked.user, asked.items)
    for found in runs:
        assert found["scores"] == {task: logits.tolist() for task, logits in expected.items()}
        assert found["file"].startswith(str(python.parents[1]))
    files = [p for p in python.parents[1].rglob("*") if p.is_file() and not p.is_symlink()]
    size = sum(p.stat().st_size for p in files)
    resident = min(r["resident"] for r in runs)
    seconds = min(r["seconds"] for r in runs)
    print(f"{bundle.name}: environment {size / 1e6:.0f} MB, load {seconds:.2f} s, resident {resident / 1e6:.0f} MB")
    assert not any((python.parents[1]).rglob("torch"))
    assert size < ENVIRONMENT_BYTES
    assert seconds < LOAD_SECONDS
    assert resident < RESIDENT_BYTES


@pytest.mark.slow
def test_the_commands_of_a_server_s_environment_say_what_to_install(python: Path, tmp_path: Path) -> None:
    for name in ("ugsep", "quant"):
        done = subprocess.run(
            [python.with_name(name), "--help"], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 2
        assert done.stderr.endswith("pip install 'ugsep[build]'\n")
        assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_the_serve_extra_is_all_that_a_server_needs(
    wheel: Path, python: Path, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Changes the environment of the tests above: it has to come after them."""
    bundle = ZENITH if (ZENITH / "manifest.json").is_file() else request.getfixturevalue("built_bundle")
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-compile"]
    run(*install, "--constraint", ROOT / "constraints.txt", f"{wheel}[cpu,serve]", cwd=tmp_path)
    assert not any((python.parents[1]).rglob("torch"))
    options = ["--http-port", "0", "--grpc-port", "0", "--drain-seconds", "0", "--log-json"]
    command = [python.with_name("ugsep"), "serve", bundle, *options, "--admin-socket", tmp_path / "admin.sock"]
    with subprocess.Popen([*map(str, command)], cwd=tmp_path, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            ready = json.loads(server.stdout.readline())
            with urllib.request.urlopen(f"{ready['http']}/examples.json") as answer:
                assert json.load(answer)
            with urllib.request.urlopen(f"{ready['http']}/examples/0.json") as answer:
                body = answer.read()
            infer = urllib.request.Request(f"{ready['http']}/v2/models/{ready['model']}/infer", body, method="POST")
            with urllib.request.urlopen(infer) as answer:
                outputs = json.load(answer)["outputs"]
            with urllib.request.urlopen(f"{ready['http']}/") as answer:
                assert b"<html" in answer.read()
        finally:
            server.terminate()
        assert server.wait(30) == 0
    expected = read_fixtures(bundle).requests[0].expected
    assert {o["name"]: np.float32(o["data"]).tolist() for o in outputs} == {
        k: v.tolist() for k, v in expected.items()
    }
