"""Two bundles, or one and what it served, on recorded requests."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from engines.bundle.bundle import Bundle
from engines.bundle.manifest import read_manifest, write_manifest
from engines.cli.main import main
from engines.serve.ranker import Ranker
from engines.verify.replay.replay import Bounds, replay
from graphs.base.errors import UgsepError
from tests import tiny

Other = Callable[[float], Path]


def test_a_bundle_gives_the_scores_it_served(built_bundle: Path, recorded: Path) -> None:
    found = replay(built_bundle, None, [recorded], Bounds())
    like = found.tasks["like"]
    assert found.reference == "the scores served when recorded"
    assert (found.requests, found.rows) == (12, sum(range(3, 15)))
    assert (like.agreement.max_abs, like.agreement.kendall_tau, like.most_moved) == (0.0, 1.0, ())
    assert found.passed
    (latency,) = found.latency.values()
    assert 0 < latency.cached.p50 <= latency.cached.p99
    assert found.slowdown is None


def test_without_served_scores_the_reference_is_fp32(built_bundle: Path, tiny_sources: object) -> None:
    found = replay(built_bundle, None, tiny_sources.requests, Bounds())  # type: ignore[attr-defined]
    assert found.reference == "its FP32 graph"
    assert 0 < found.tasks["like"].agreement.max_abs < 0.5
    assert 25 < found.tasks["like"].agreement.sqnr_db < 80, "int8 weights"


def test_two_bundles_against_scores_of_their_own(built_bundle: Path, recorded: Path, other_bundle: Other) -> None:
    other = other_bundle(0.02)
    found = replay(built_bundle, other, [recorded], Bounds())
    requests = list(Bundle.open(built_bundle).read_requests([recorded]))
    with Ranker.from_bundle(built_bundle) as a, Ranker.from_bundle(other) as b:
        moved = [b.score(r.user, r.items)["like"] - a.score(r.user, r.items)["like"] for r in requests]
    assert found.tasks["like"].agreement.max_abs == pytest.approx(np.abs(np.concatenate(moved)).max())
    assert found.tasks["like"].agreement.max_abs > 0
    assert (
        found.tasks["like"].most_moved[0].request_id
        == requests[int(np.argmax([abs(m).max() for m in moved]))].request_id
    )
    assert list(found.latency) == [found.reference, found.actual]
    assert found.slowdown is not None
    assert 0.05 < found.slowdown < 20, "the same engines but for their weights"


def test_the_limit_bounds_the_requests(built_bundle: Path, recorded: Path) -> None:
    assert replay(built_bundle, built_bundle, [recorded], Bounds(), limit=5).requests == 5
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("engines.verify.replay.replay._TIMED", 4)
        assert replay(built_bundle, None, [recorded], Bounds()).requests == 12


def test_progress_tells_every_step(built_bundle: Path, recorded: Path) -> None:
    events = []
    replay(built_bundle, None, [recorded], Bounds(), progress=events.append)
    last = {event.step: (event.done, event.total) for event in events}
    assert last == {"replay": (12, 12), "latency": (12, 12)}


def rename_input(bundle: Path, side: str, name: str, new: str) -> None:
    """Give a feature of the FP32 graph another name, as a build from other features would."""
    file = bundle / "onnx" / f"{side}.onnx"
    model = onnx.load(file)
    (given,) = [i for i in model.graph.input if i.name == name]
    given.name = new
    for node in model.graph.node:
        node.input[:] = [new if value == name else value for value in node.input]
    onnx.save(model, file)
    write_manifest(bundle, read_manifest(bundle))


def test_other_features_are_named(built_bundle: Path, bundle: Path, recorded: Path) -> None:
    rename_input(bundle, "user", "age", "years")
    with pytest.raises(UgsepError) as error:
        replay(built_bundle, bundle, [recorded], Bounds())
    assert str(error.value) == (
        "the bundles take different features: 'age' is a user feature float32[rows, 3] of "
        f"{built_bundle} and not a feature of {bundle}; replay each on requests of its own"
    )


def test_requests_of_another_model_are_refused(built_bundle: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", request_id=np.zeros(2, np.int64), user_id=np.zeros(2, np.int64))
    with pytest.raises(UgsepError, match=r"other.npz': column 'age' is missing"):
        replay(built_bundle, None, [tmp_path / "other.npz"], Bounds())


def test_a_request_that_a_bundle_refuses_is_named(built_bundle: Path, tmp_path: Path) -> None:
    user, items = tiny.user_and_items(3)
    items["item_id"][1] = 61
    columns = {**{k: np.repeat(v, 3, axis=0) for k, v in user.items()}, **items}
    np.savez(tmp_path / "ids.npz", request_id=np.full(3, 77), **columns)
    with pytest.raises(UgsepError, match=r"tiny \(\w{12}\) refuses request 77: item feature 'item_id' has id 61"):
        replay(built_bundle, None, [tmp_path / "ids.npz"], Bounds())


def test_a_damaged_bundle_is_refused(built_bundle: Path, bundle: Path, recorded: Path) -> None:
    (bundle / "onnx" / "user.onnx").write_bytes(b"")
    with pytest.raises(UgsepError, match=r"user\.onnx"):
        replay(built_bundle, bundle, [recorded], Bounds())


def run(*arguments: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(main, ["replay", *map(str, arguments)])
    return done.exit_code, done.stdout, done.stderr


def test_the_command_prints_tables_and_passes(built_bundle: Path, recorded: Path) -> None:
    code, out, _ = run(built_bundle, built_bundle, "--requests", recorded)
    assert code == 0, out
    assert "12 requests, 102 candidates" in out
    assert "Kendall tau [like]: 1 >= 0.99 ok" in out
    assert "top-10 overlap [like]: 1 >= 0.95 ok" in out
    assert "again" in out, "the same bundle twice has two names"


def test_the_command_fails_beyond_bounds(built_bundle: Path, recorded: Path, other_bundle: Other) -> None:
    other = other_bundle(0.5)
    code, out, err = run(built_bundle, other, "--requests", recorded, "--json", "--max-drift", "1e-4",
                         "--max-slowdown", "1000", "--top-k", "3")  # fmt: skip
    found = json.loads(out)
    assert code == 1, err
    assert not found["passed"]
    assert {t["name"]: t["passed"] for t in found["targets"]} == {
        "Kendall tau [like]": False, "top-3 overlap [like]": False, "max |score difference| [like]": False,
        "p50 over the reference's, user computed": True,
    }  # fmt: skip
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert "max |score difference| [like]" in line
    assert line.count("FAILED") == 3
    assert set(found["latency_ms"]) == {found["reference"], found["actual"]}
    assert found["tasks"]["like"]["most_moved"][0]["candidates"] in range(3, 15)


def test_a_served_score_that_changed_fails_too(built_bundle: Path, recorded: Path, other_bundle: Other) -> None:
    code, _, err = run(other_bundle(0.5), "--requests", recorded)
    assert code == 1
    assert "against the scores served when recorded: Kendall tau [like]" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["BUNDLE"], "Missing option '--requests'"),
        (["BUNDLE", "--requests", "nowhere"], "no request data at 'nowhere'"),
        (["nowhere", "--requests", "RECORDED"], "nowhere"),
        (["BUNDLE", "nowhere", "--requests", "RECORDED"], "nowhere"),
        (["BUNDLE", "--requests", "RECORDED", "--min-tau", "2"], "--min-tau"),
        (["BUNDLE", "--requests", "RECORDED", "--limit", "0"], "--limit"),
        (["BUNDLE", "--requests", "RECORDED", "--max-drift", "-1"], "--max-drift"),
        (["BUNDLE", "--requests", "RECORDED", "--max-slowdown", "0"], "--max-slowdown"),
        (["BUNDLE", "--requests", "RECORDED", "--html", "no/such/folder.html"], "no/such/folder.html"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], message: str, built_bundle: Path, recorded: Path) -> None:
    given = {"BUNDLE": str(built_bundle), "RECORDED": str(recorded)}
    code, out, err = run(*[given.get(a, a) for a in arguments])
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert (code, out) == (2, "")
    assert message in line


def test_a_cut_file_is_named(built_bundle: Path, recorded: Path, tmp_path: Path) -> None:
    shutil.copytree(recorded, tmp_path / "cut")
    (file,) = (tmp_path / "cut").iterdir()
    file.write_bytes(file.read_bytes()[:-20])
    code, _, err = run(built_bundle, "--requests", tmp_path / "cut")
    assert code == 2
    assert f"'{file}' is damaged or truncated" in err
