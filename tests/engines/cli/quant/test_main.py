import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from click.testing import CliRunner

from engines.cli.quant.main import main
from quant.calibration.files import load_calibration
from quant.requests.synthetic import SYNTHETIC_CANDIDATES


@pytest.fixture
def bundle(graphs, make_columns, make_shards, tmp_path):
    make_shards(tmp_path / "data", make_columns(12), [20])
    return tmp_path


def run(*args, status=0):
    result = CliRunner().invoke(main, [str(a) for a in args])
    assert result.exit_code == status, result.output
    if status:
        assert result.stderr.splitlines()[-1].startswith("error: ")
        assert "Traceback" not in result.output
    return result


def test_from_requests_to_weights_and_back(bundle) -> None:
    summary = json.loads(run("calibrate", bundle, "--data", bundle / "data", "--json").stdout)
    assert (summary["requests"], summary["synthetic"]) == (12, False)
    assert not (bundle / ".calibrating").exists()
    tables = json.loads(run("weights", bundle, "--tables", "--out", bundle / "q", "--json").stdout)
    assert [t["graph"] for t in tables] == ["user", "item"]
    assert tables[1]["samples_sha256"] == summary["samples_sha256"]
    rows = json.loads(run("inspect", bundle / "q" / "item.w8a32.onnx", "--json").stdout)
    assert {r["weight"]: r["bits"] for r in rows}["item.table"] == 8
    assert "ffn.down.weight" in run("inspect", bundle).stdout
    assert "weights reduced from" in run("weights", bundle, "--scheme", "absmax").stdout
    assert (bundle / "onnx" / "item.w8a16.onnx").is_file()


def test_parts_are_merged(bundle) -> None:
    for number in (0, 1):
        run("calibrate", bundle, "--data", bundle / "data" / f"part-{number}.parquet", "--out", bundle / str(number))
    run("merge", bundle / "0", bundle / "1", "--out", bundle / "all")
    joined = load_calibration(bundle / "all")
    assert joined.rows == sum(load_calibration(bundle / n).rows for n in "01")
    assert "the same requests" in run("merge", bundle / "0", bundle / "0", "--out", bundle / "x", status=2).stderr


def test_calibration_goes_on_after_an_interruption(bundle, monkeypatch) -> None:
    monkeypatch.setattr("engines.cli.quant.main.CHECKPOINT_REQUESTS", 4)
    from quant.calibration import calibrate as module

    real, seen = module.observe_request, []

    def stop_at_ninth(request, user, item):
        seen.append(request.request_id)
        if len(seen) == 9:
            raise KeyboardInterrupt
        real(request, user, item)

    monkeypatch.setattr(module, "observe_request", stop_at_ninth)
    result = CliRunner().invoke(main, ["calibrate", str(bundle), "--data", str(bundle / "data")])
    assert result.exit_code == 130
    assert not (bundle / "calibration.json").exists()
    run("calibrate", bundle, "--data", bundle / "data")
    assert len(seen) == 9 + 4  # eight were kept
    resumed = load_calibration(bundle)
    run("calibrate", bundle, "--data", bundle / "data", "--out", bundle / "whole")
    assert resumed.samples == load_calibration(bundle / "whole").samples


@pytest.mark.parametrize("lost", ["calibration.safetensors", "calibration.json"])
def test_a_run_killed_while_it_removed_its_state_starts_anew(bundle, make_columns, make_shards, lost: str) -> None:
    folder = bundle / "shards"
    make_shards(folder, make_columns(40), [180])
    run("calibrate", bundle, "--data", folder)
    state = bundle / ".calibrating"
    state.mkdir()
    for name in {"calibration.safetensors", "calibration.json"} - {lost}:
        shutil.copy(bundle / name, state / name)
    run("calibrate", bundle, "--data", folder, "--out", bundle)
    assert not state.exists()


def test_a_broken_shard_in_the_middle_loses_nothing_of_what_was_done(bundle, make_columns, make_shards) -> None:
    folder = bundle / "shards"
    shards = make_shards(folder, make_columns(40), [60, 120])
    whole = shards[1].read_bytes()
    shards[1].write_bytes(whole[:-300])
    refused = run("calibrate", bundle, "--data", folder, status=2)
    assert "part-1.parquet' is damaged or truncated" in refused.stderr.splitlines()[-1]
    kept = load_calibration(bundle / ".calibrating")
    assert 0 < kept.rows < 60  # the request that may continue in the next shard is still open
    shards[1].write_bytes(whole)
    run("calibrate", bundle, "--data", folder)
    assert not (bundle / ".calibrating").exists()
    resumed = load_calibration(bundle)
    run("calibrate", bundle, "--data", folder, "--out", bundle / "again")
    assert resumed.samples == load_calibration(bundle / "again").samples
    for name, found in load_calibration(bundle / "again").item.tensors.items():
        np.testing.assert_allclose(resumed.item.tensors[name].sums, found.sums, rtol=1e-12)


def test_what_cannot_be_written_shows_before_the_work(bundle, monkeypatch) -> None:
    def never(*_, **__):
        raise AssertionError("the work began")

    monkeypatch.setattr("engines.cli.quant.main.calibration_run.calibrate", never)
    monkeypatch.setattr("engines.cli.quant.scored.run_sensitivity", never)
    monkeypatch.setattr("engines.cli.quant.scored.run_search", never)
    (bundle / "file").write_text("in the way")
    data = ("--data", bundle / "data", "--scheme", "absmax")
    assert "file" in run("calibrate", bundle, *data[:2], "--out", bundle / "file", status=2).stderr
    drawn = run("sensitivity", bundle, *data, "--plot", bundle / "s.nothing", status=2)
    assert "cannot draw" in drawn.stderr
    assert "svg" in drawn.stderr
    assert "file" in run("search", bundle, *data, "--out", bundle / "file" / "p.yaml", status=2).stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_policy_that_cannot_be_written_is_printed(bundle, monkeypatch) -> None:
    monkeypatch.setattr(
        "engines.cli.quant.scored.gemm_timer",
        lambda *_: lambda shape, rows: dict.fromkeys(("int8", "fp16", "fp32"), 1.0),
    )
    out = bundle / "full" / "policy.yaml"
    out.parent.mkdir()
    (out.parent / "policy.yaml.partial").symlink_to("/dev/full")  # every write to it: no space left on device
    data = ("--data", bundle / "data", "--scheme", "absmax", "--min-sqnr", 0, "--max-drop", 1)
    shown = run("search", bundle, *data, "--out", out, status=2)
    assert f"cannot write '{out}' (No space left on device)" in shown.stderr
    assert len(yaml.safe_load(shown.stdout)["policy"]["weights"]) == 4
    assert not list(out.parent.iterdir())


def test_random_data_only_on_request_and_recorded(bundle) -> None:
    assert "--synthetic N" in run("calibrate", bundle, status=2).stderr
    both = run("calibrate", bundle, "--synthetic", 2, "--data", bundle / "data", status=2)
    assert "mutually exclusive" in both.stderr
    run("calibrate", bundle, "--synthetic", 2, "--limit", 1)
    found = load_calibration(bundle)
    assert found.synthetic
    assert found.samples[0].requests == 1


def test_sensitivity_and_search_write_what_weights_reads(bundle) -> None:
    run("calibrate", bundle, "--data", bundle / "data", "--gram")
    common = (bundle, "--data", bundle / "data", "--scheme", "gptq", "--cache", bundle / "cache.json")
    rows = json.loads(run("sensitivity", *common, "--json", "--plot", bundle / "s.png").stdout)
    assert len(rows) == 4
    assert (bundle / "s.png").read_bytes()[:4] == b"\x89PNG"
    assert "Kendall tau" in run("sensitivity", *common).stdout
    policy = bundle / "policy.yaml"
    run("search", *common, "--max-drop", 1, "--min-sqnr", 10, "--candidates", 8, "--out", policy)
    assert len(yaml.safe_load(policy.read_text())["policy"]["weights"]) == 4
    run("weights", bundle, "--scheme", "gptq", "--policy", policy, "--out", bundle / "q")
    policy.write_text("weights: [{glob: 'ffn.dwn.*', precision: int8}]")
    refused = run("weights", bundle, "--policy", policy, "--out", bundle / "q", status=2)
    assert "matches no weight" in refused.stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["weights", "{b}", "--scheme", "msee"], "unknown scheme 'msee', did you mean 'mse'"),
        (["weights", "{b}"], "run quant calibrate"),
        (["weights", "{b}/data"], "pass a bundle or a directory with user.onnx"),
        (["search", "{b}", "--data", "{b}/data", "--scheme", "absmax", "--backend", "onnxruntim"], "did you mean"),
        (["inspect", "{b}/data"], "no .onnx files in"),
        (["inspect", "{b}/none.onnx"], "no .onnx files in"),
        (["calibrate", "{b}", "--data", "{b}/none/*.parquet"], "no request data at"),
        (["calibrat", "{b}"], "unknown command 'calibrat', did you mean 'calibrate'"),
    ],
)
def test_bad_usage_is_one_line(bundle, args, message) -> None:
    result = run(*(a.format(b=bundle) for a in args), status=2)
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("onnx/user.onnx", ["calibrate", "{b}", "--synthetic", "1"]),
        ("onnx/item.onnx", ["inspect", "{b}/onnx/item.onnx"]),
        ("onnx/item.onnx", ["inspect", "{b}"]),
        ("manifest.json", ["inspect", "{b}"]),
        ("manifest.json", ["weights", "{b}", "--scheme", "absmax"]),
        ("calibration.json", ["weights", "{b}"]),
        ("policy.yaml", ["weights", "{b}", "--scheme", "absmax", "--policy", "{b}/policy.yaml"]),
        (
            "effects.json",
            ["sensitivity", "{b}", "--scheme", "absmax", "--data", "{b}/data", "--cache", "{b}/effects.json"],
        ),
    ],
)
def test_a_pipe_in_the_place_of_a_file_is_named_and_not_waited_for(bundle, name, args) -> None:
    (bundle / name).unlink(missing_ok=True)
    os.mkfifo(bundle / name)
    result = run(*(a.format(b=bundle) for a in args), status=2)
    assert f"{name}' is a pipe, not a file; " in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_sealed_bundle_is_left_alone(bundle) -> None:
    (bundle / "manifest.json").write_text("{}")
    for args in (["calibrate", bundle, "--synthetic", 1], ["weights", bundle, "--scheme", "absmax"]):
        assert "must not change; pass another directory with --out" in run(*args, status=2).stderr


def test_a_refused_run_leaves_no_folder_behind(bundle) -> None:
    refused = run("weights", bundle, "--scheme", "absmax", "--block", 7, "--out", bundle / "a" / "b", status=2)
    assert "7" in refused.stderr
    assert not (bundle / "a").exists()


def test_synthetic_requests_have_the_usual_size(bundle) -> None:
    found = json.loads(run("calibrate", bundle, "--synthetic", 2, "--out", bundle / "s", "--json").stdout)
    assert (found["requests"], found["rows"]) == (2, 2 * SYNTHETIC_CANDIDATES)
