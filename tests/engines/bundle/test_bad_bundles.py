"""Bundles that cannot be served are rejected in one line before an engine runs, and the process survives."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from engines import Ranker
from engines.build.sources import Sources
from engines.bundle.files import MANIFEST
from engines.bundle.manifest import read_manifest, write_manifest
from engines.cli.main import main
from graphs.base.errors import UgsepError
from tests import tiny
from tests.manifests import edit_raw


def item_engine(raw: dict[str, Any]) -> dict[str, Any]:
    built: dict[str, Any] = next(e["built"] for e in raw["engines"] if e["built"]["side"] == "item")
    return built


def truncate(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    engine = next(e for e in manifest.engines if e.built.side == "item")
    for name in engine.built.files:
        path = bundle / engine.directory / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def truncate_and_hash(bundle: Path) -> None:
    truncate(bundle)
    write_manifest(bundle, read_manifest(bundle))


def swap_engines(bundle: Path) -> None:
    """Replace the item engine's files with the user engine's, with matching hashes."""
    manifest = read_manifest(bundle)
    user, item = (next(e for e in manifest.engines if e.built.side == side) for side in ("user", "item"))
    graph, _ = user.built.files
    for target in item.built.files:  # there may be a graph for one user next to the one for several
        if target.endswith(".onnx"):
            (bundle / item.directory / target).write_bytes((bundle / user.directory / graph).read_bytes())
    # The graph refers to its weights by the name of the user engine's file.
    weights = bundle / user.directory / user.built.files[1]
    (bundle / item.directory / user.built.files[1]).write_bytes(weights.read_bytes())
    write_manifest(bundle, manifest)


def of_item(**changes: Any) -> Callable[[Path], None]:
    return lambda bundle: edit_raw(bundle, lambda raw: item_engine(raw).update(changes))


def tensor(kind: str, named: str, **changes: Any) -> Callable[[Path], None]:
    def change(raw: dict[str, Any]) -> None:
        next(t for t in item_engine(raw)[kind] if t["name"] == named).update(changes)

    return lambda bundle: edit_raw(bundle, change)


def lead_out(bundle: Path) -> None:
    elsewhere = bundle.with_name("elsewhere")
    (bundle / "engines").rename(elsewhere)
    (bundle / "engines").symlink_to(elsewhere)


def manifest_elsewhere(bundle: Path) -> None:
    (bundle / MANIFEST).rename(bundle.with_name("other.json"))
    (bundle / MANIFEST).symlink_to(bundle.with_name("other.json"))


GPU = of_item(backend="tensorrt-rtx", precision="w8a16", requires={"compute_capability": "8.9"})
BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "newer manifest": (lambda b: edit_raw(b, lambda raw: raw.update(version=5)), "version 5 is newer.*upgrade"),
    "truncated engine": (truncate, "bytes but the manifest says .* rebuild: make engines MODEL=tiny"),
    "truncated engine with matching hashes": (truncate_and_hash, "cannot load it .*rebuild: make engines MODEL=tiny"),
    "engine of the other side": (swap_engines, "inputs are user_id.* but the manifest says item_id.*rebuild: make"),
    "input of another name": (tensor("inputs", "genres", name="genre"), "inputs are .*genres.* but the manifest"),
    "input of another dtype": (
        tensor("inputs", "item_id", dtype="int32"),
        r"input 'item_id' is int64\[candidates\] but the manifest says int32\[candidates\]",
    ),
    "input of another width": (
        tensor("inputs", "genres", shape=["candidates", 9]),
        r"input 'genres' is float32\[candidates, 7\] but the manifest says float32\[candidates, 9\]",
    ),
    "output of another dtype": (tensor("outputs", "like", dtype="float16"), "output 'like' is float32.*says float16"),
    "another machine class": (GPU, "item engine needs compute_capability 8.9, this machine: .*rebuild: make engines"),
    "setting of another type": (
        of_item(session={"intra_op_num_threads": "many"}),
        "onnxruntime rejects its settings .*rebuild: make",
    ),
    "directory that leads out": (lead_out, "a link leads out of the bundle"),
    "manifest that leads out": (manifest_elsewhere, "a link leads out of the bundle"),
    "path that leads out": (of_item(files=["../../../etc/passwd"]), "leaves the bundle"),
    "shape out of range": (tensor("inputs", "genres", shape=["candidates", 1 << 40]), "shape .* is out of range"),
}  # fmt: skip


@pytest.mark.parametrize("case", sorted(BAD))
def test_it_is_refused_in_one_line(bundle: Path, built_bundle: Path, case: str) -> None:
    damage, says = BAD[case]
    if case == "another machine class":
        from engines.backends.tensorrt_rtx import backend

        if backend.probe().can_run:
            pytest.skip("this machine runs such engines")
    damage(bundle)
    with pytest.raises(UgsepError, match=says) as caught:
        Ranker.from_bundle(bundle)
    assert "\n" not in str(caught.value)
    ranker = Ranker.from_bundle(built_bundle)
    assert np.isfinite(ranker.score(*tiny.user_and_items(3))["like"]).all()
    ranker.close()


@pytest.mark.parametrize(
    "case", ["newer manifest", "truncated engine with matching hashes", "input of another width"]
)
def test_the_command_ends_with_status_2(bundle: Path, case: str) -> None:
    BAD[case][0](bundle)
    result = CliRunner().invoke(main, ["validate", str(bundle), "--synthetic"])
    assert result.exit_code == 2, result.output
    assert [line[:7] for line in result.stderr.splitlines() if line] == ["error: "]


def test_an_id_beyond_its_table_is_refused_and_the_next_request_served(built_bundle: Path, capfd: Any) -> None:
    ranker = Ranker.from_bundle(built_bundle)
    user, items = tiny.user_and_items(4)
    items["item_id"][2] = 10**9
    with pytest.raises(
        UgsepError, match=r"item feature 'item_id' has id 1000000000; its table has \d+ rows"
    ) as caught:
        ranker.score(user, items)
    assert "\n" not in str(caught.value)
    assert np.isfinite(ranker.score(*tiny.user_and_items(4))["like"]).all()
    ranker.close()
    assert capfd.readouterr().err == ""  # the runtime logs nothing


_HOLD = """
import sys
from pathlib import Path
from engines.bundle.publish import publish
with publish(Path(sys.argv[1])):
    print("holding", flush=True)
    sys.stdin.readline()
"""


def test_two_processes_cannot_build_into_one_directory(tiny_sources: Sources, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-c", _HOLD, str(out)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdin is not None
        assert holder.stdout.readline() == "holding\n"
        build = ["build", "zenith", "--checkpoint", str(tiny_sources.checkpoint), "--out", str(out)]
        result = CliRunner().invoke(main, build)
        assert result.exit_code == 2, result.output
        assert f"error: {out}: another process is building here" in result.stderr
        holder.stdin.write("done\n")
        holder.stdin.close()
        assert holder.wait(30) == 0
