"""``ugsep inspect``: every engine, weight and setting of a bundle, without loading an engine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from engines import Ranker
from engines.bundle.manifest import read_manifest
from engines.cli.bundles.inspect import describe
from engines.cli.main import main
from graphs.base.errors import UgsepError
from tests import tiny
from tests.manifests import edit_raw


def test_everything_the_manifest_holds_is_told(built_bundle: Path) -> None:
    manifest, found = read_manifest(built_bundle), describe(built_bundle)
    assert [e["directory"] for e in found["engines"] if e["chosen"]] == sorted(
        manifest.choice.values(), key=[e.directory for e in manifest.engines].index
    )
    files = [p for p in built_bundle.rglob("*") if p.is_file() and p.name != "manifest.json"]
    assert found["bytes"] == sum(p.stat().st_size for p in files)
    assert found["host"]["built_on"] == found["host"]["here"]  # built a moment ago
    assert [t["users"] for t in found["batching"]] == [t.users for t in manifest.batching]
    for engine, told in zip(manifest.engines, found["engines"], strict=True):
        assert told["session"] == dict(engine.built.session)
        assert told["session"]["intra_op_num_threads"] == 1
        assert told["runs_here"] is True
        assert [(w["name"], w["status"]) for w in told["weights"]] == [
            (w.name, w.status) for w in engine.built.weights
        ]
        int8 = [w for w in told["weights"] if w["status"] != "float"]
        assert len(int8) >= 3
        # Per-channel int8 has about 40 dB; below 20 or above 80 indicates swapped weights or a wrong unit.
        assert all(20 < w["sqnr_db"] < 80 for w in int8)
        assert all(w["sqnr_db"] is None for w in told["weights"] if w["status"] == "float")


def test_a_cached_user_is_as_large_as_the_ranker_says(built_bundle: Path) -> None:
    user, items = tiny.user_and_items(3)
    with Ranker.from_bundle(built_bundle) as ranker:
        ranker.score(user, items)
        assert describe(built_bundle)["cache_entry_bytes"] == ranker.cache_info().bytes > 0


def test_the_command_prints_tables_or_json(built_bundle: Path) -> None:
    text = CliRunner().invoke(main, ["inspect", str(built_bundle)])
    assert text.exit_code == 0, text.output
    for word in (
        "w8a8-dynamic",
        "fused-int8",
        "session.disable_quant_qdq=1",
        "rebuild: make engines MODEL=tiny",
        "profile: users 1-16, candidates 1-64 (most often 9)",
        "requests of several users, states cached, ms: one by one, and in one item call",
        "a cached user takes ",
    ):
        assert word in text.output
    printed = CliRunner().invoke(main, ["inspect", str(built_bundle), "--json"])
    assert json.loads(printed.stdout) == json.loads(json.dumps(describe(built_bundle)))


def test_an_engine_of_an_unknown_backend_is_shown_with_the_reason(bundle: Path) -> None:
    edit_raw(bundle, lambda raw: raw["engines"][0]["built"].update(backend="onnxruntime-next[beta]"))
    found = describe(bundle)["engines"][0]
    assert (found["runs_here"], "unknown backend" in found["reason"]) == (False, True)
    # Square brackets are text, not markup.
    assert "onnxruntime-next[beta]" in CliRunner().invoke(main, ["inspect", str(bundle)]).output


@pytest.mark.parametrize("name", ["onnx/item.w8a32.onnx", "onnx/full.onnx.data", "report.html"])
def test_a_file_that_differs_from_the_manifest_is_refused(bundle: Path, name: str) -> None:
    file = bundle / name
    file.write_bytes(file.read_bytes()[:-1] + b"\0")
    with pytest.raises(UgsepError, match="but the manifest says"):
        describe(bundle)
    result = CliRunner().invoke(main, ["inspect", str(bundle)])
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)


def test_no_bundle(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["inspect", str(tmp_path / "none")])
    assert result.exit_code == 2
    assert "not a bundle; build one" in result.stderr


def test_the_reason_of_a_choice_and_other_versions_are_shown(bundle: Path) -> None:
    edit_raw(bundle, lambda raw: raw["reasons"].update(item="onnxruntime w8a32 takes 0.5 ms"))
    edit_raw(bundle, lambda raw: raw["tools"].update(onnx="0.1"))
    found = describe(bundle)
    assert found["why"] == {"item": "onnxruntime w8a32 takes 0.5 ms"}
    (other,) = found["tools_differ"]
    assert other.startswith("onnx 0.1 (bundle) != ")
    text = CliRunner().invoke(main, ["inspect", str(bundle)]).output
    assert "why this item engine: onnxruntime w8a32 takes 0.5 ms" in text
    assert "versions that differ here: onnx 0.1 (bundle) != " in text
