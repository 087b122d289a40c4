"""Graphs that crash, hang or eat memory end the process that runs them, not the one that asked."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from pathlib import Path
from random import Random

import numpy as np
import onnx
import psutil
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

from engines import Ranker
from engines.bundle.manifest import read_manifest, write_manifest
from engines.cli.main import main
from engines.verify.isolated.run import Limits, validate_isolated
from graphs.base.errors import UgsepError
from tests import tiny
from tests.engines.bundle.onnx_mutations import mutate


def test_a_sound_bundle_has_the_same_checks_in_a_process_of_its_own(built_bundle: Path) -> None:
    told: list[str] = []
    checks = validate_isolated(built_bundle, [], progress=lambda event: told.append(event.step))
    assert {"reference scores", "quantized scores"} <= set(told)
    names = [check.name for check in checks]
    assert len(names) == len(set(names)) >= 6
    assert any(name.startswith("split max") for name in names)
    assert all(np.isfinite((check.value, check.bound)).all() for check in checks)


@pytest.fixture
def earlier() -> set[psutil.Process]:
    """The children of this process before the test: tests that ran earlier in it may have left some to end."""
    return set(psutil.Process().children(recursive=True))


def endless(bundle: Path) -> None:
    """Give the whole FP32 graph, which only validation runs, a loop of 2^62 rounds before its output."""
    path = bundle / "onnx" / "full.onnx"
    model = onnx.load(path, load_external_data=False)
    graph, output = model.graph, model.graph.output[0].name
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["cond_in"], ["cond_out"]),
            helper.make_node("Sin", ["held_in"], ["held_out"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("round", TensorProto.INT64, []),
            helper.make_tensor_value_info("cond_in", TensorProto.BOOL, []),
            helper.make_tensor_value_info("held_in", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("cond_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("held_out", TensorProto.FLOAT, None),
        ],
    )
    for node in graph.node:
        node.output[:] = ["before_loop" if name == output else name for name in node.output]
    graph.initializer.append(numpy_helper.from_array(np.array(2**62), "rounds"))
    graph.initializer.append(numpy_helper.from_array(np.array(True), "on"))
    graph.node.append(helper.make_node("Loop", ["rounds", "on", "before_loop"], [output], body=body))
    path.write_bytes(model.SerializeToString())
    write_manifest(bundle, read_manifest(bundle))


def test_a_graph_that_never_ends_is_ended_in_one_line(bundle: Path, earlier: set[psutil.Process]) -> None:
    endless(bundle)
    result = CliRunner().invoke(main, ["validate", "--synthetic", "--time-limit", "8", str(bundle)])
    assert result.exit_code == 2, result.output
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "its checks took more than 8 s; raise --time-limit, or do not use this bundle" in errors[0]
    assert set(psutil.Process().children(recursive=True)) <= earlier, "nothing runs on"


def test_memory_is_bounded(built_bundle: Path, earlier: set[psutil.Process]) -> None:
    with pytest.raises(UgsepError, match="its checks took more than 20 MiB of memory; raise --memory-limit"):
        validate_isolated(built_bundle, [], limits=Limits(memory=20 << 20))
    assert set(psutil.Process().children(recursive=True)) <= earlier


@pytest.mark.parametrize("sent", [signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL])
def test_a_crash_of_the_runtime_is_one_line(
    built_bundle: Path, sent: signal.Signals, earlier: set[psutil.Process]
) -> None:
    def crash() -> None:
        while not (children := set(psutil.Process().children()) - earlier):
            time.sleep(0.01)
        time.sleep(0.5)
        os.kill(children.pop().pid, sent)

    thread = threading.Thread(target=crash)
    thread.start()
    with pytest.raises(UgsepError, match=f"crashed the runtime that checked them \\({sent.name}\\); do not use this"):
        validate_isolated(built_bundle, [])
    thread.join()


@pytest.mark.parametrize(
    "limits", [{"seconds": 0}, {"seconds": float("nan")}, {"seconds": 1e9}, {"memory": -1}, {"memory": 1 << 60}]
)
def test_limits_out_of_range_are_refused(limits: dict[str, float]) -> None:
    with pytest.raises(UgsepError, match="out of range"):
        Limits(**limits)  # type: ignore[arg-type]


def check_mutants(bundle: Path, folder: Path, seeds: range) -> list[int]:
    """Validate mutants of a bundle's graphs, hashes made again; return the exit status of each.

    Raises:
        AssertionError: a crash, more than one line, or wrong scores that pass.
    """
    files = [name for name in read_manifest(bundle).files if name.endswith(".onnx")]
    with Ranker.from_bundle(bundle) as ranker:
        right = [ranker.score(*tiny.user_and_items(40, seed))["like"] for seed in range(3)]
    statuses = []
    for seed in seeds:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(bundle, folder)
        rng = Random(seed)
        what = f"seed {seed}: {mutate(folder / rng.choice(files), rng)}"
        write_manifest(folder, read_manifest(folder))
        result = CliRunner().invoke(main, ["validate", "--synthetic", "--time-limit", "120", str(folder)])
        assert result.exit_code in (0, 1, 2), (what, result.exception)
        assert "Traceback" not in result.output, what
        if result.exit_code:
            told = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
            assert len(told) == 1, (what, result.stderr)
            assert told[0].isprintable(), what
        else:
            with Ranker.from_bundle(folder) as ranker:
                found = [ranker.score(*tiny.user_and_items(40, seed))["like"] for seed in range(3)]
            # The same weights in another order of sums: logits of order 1, a few hundred terms in FP32.
            np.testing.assert_allclose(found, right, rtol=0, atol=1e-4, err_msg=what)
        statuses.append(result.exit_code)
    return statuses


def test_mutated_graphs_are_refused_or_score_right(built_bundle: Path, tmp_path: Path) -> None:
    assert 2 in check_mutants(built_bundle, tmp_path / "m", range(3))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_hundred_mutated_graphs_are_refused_or_score_right(built_bundle: Path, tmp_path: Path) -> None:
    assert {0, 2} <= set(check_mutants(built_bundle, tmp_path / "m", range(1000, 1200)))
