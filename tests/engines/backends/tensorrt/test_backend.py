import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.backends.build import build_engine
from engines.backends.built_engine import BuiltEngine
from engines.backends.engine_spec import BuildSpec, Profile, Rows
from engines.backends.graph_io import graph_io
from engines.backends.tensorrt import backend, library
from engines.backends.tensorrt import build as building
from engines.backends.trt.gpu import gpu
from engines.backends.trt.plan import Plan, build_plan, int8_statuses, profile_shapes
from engines.backends.trt.worker import PlanJob
from export.io import read_graph
from export.lowering import lower_for_tensorrt
from graphs.base.errors import UgsepError
from tests.export.lowering_graphs import FFN_SHAPE, ffn, to_half

PROFILES = (Profile(Rows(1, 1, 4), Rows(1, 16, 64)), Profile(Rows(1, 1, 4), Rows(65, 256, 512)))
HERE = backend.probe()


def _silent(message: str) -> None:
    assert message


@pytest.mark.skipif(HERE.can_build, reason="TensorRT and a GPU are here")
def test_it_says_what_is_missing(tmp_path: Path) -> None:
    assert not HERE.can_run
    source = to_half(ffn(tmp_path / "f32.onnx", np.random.default_rng(), True, "gelu"), tmp_path / "full.onnx")
    with pytest.raises(UgsepError, match=r"backend 'tensorrt' (needs TensorRT 11|builds only on the GPU)") as error:
        build_engine(backend, BuildSpec("full", source, "w8a16"), tmp_path, _silent)
    assert str(error.value) == HERE.reason or "builds only" in HERE.reason
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ({"optimization_level": 9}, "optimization_level is 9; give 0 to 5"),
        ({"hardware_compatible": "amper-plus"}, "did you mean 'ampere-plus'"),
        ({"workspace_mb": -1}, "workspace_mb is -1"),
    ],
)
def test_values_are_checked(option: dict[str, Any], says: str) -> None:
    with pytest.raises(UgsepError, match=says):
        building.check_values({**backend.OPTIONS, **option})


def _compile_for_89(tmp_path: Path, profiles: tuple[Profile, ...] = PROFILES, **options: Any) -> Plan:
    """Compile with TensorRT-RTX, which has the same builder interface and needs no GPU: the calls are real."""
    pytest.importorskip("tensorrt_rtx", reason="pip install 'ugsep[tensorrt-rtx]'")
    source = to_half(ffn(tmp_path / "f32.onnx", np.random.default_rng(), True, "swiglu"), tmp_path / "full.onnx")
    lowered = lower_for_tensorrt(source, tmp_path / "lowered.onnx")
    inputs, _ = graph_io(read_graph(lowered.path))
    settings = dataclasses.replace(
        building.settings_of({**backend.OPTIONS, **options}),
        compute_capabilities=((8, 9),),
        timing_cache=str(tmp_path / "kernels.timing"),
    )
    engine, shapes = str(tmp_path / "full.engine"), profile_shapes(inputs, profiles)
    return build_plan(PlanJob("tensorrt_rtx", str(lowered.path), engine, shapes, settings))


def test_options_reach_the_library(tmp_path: Path) -> None:
    plan = _compile_for_89(tmp_path, workspace_mb=64, optimization_level=2)
    assert plan.settings["optimization_level"] == 2
    assert plan.settings["workspace_bytes"] == 64 << 20
    assert plan.settings["profiles"] == len(PROFILES)
    assert plan.bytes == (tmp_path / "full.engine").stat().st_size
    statuses = int8_statuses(plan.layers, {"down.weight": "down.weight", "gone": "gone"})
    assert [f.status for f in statuses] == ["fused-int8", "folded-to-float"]


_FLAGS = """
import json, sys, tensorrt_rtx as trt
from engines.backends.trt.worker import PlanJob, Settings, create_config, settings_held
job = PlanJob("tensorrt_rtx", "", "", (), Settings(**json.load(sys.stdin)))
config = create_config(job)(trt.Builder(trt.Logger(trt.Logger.ERROR)), None)
print(json.dumps(settings_held(config, trt)["flags"]))
"""


def _flags(**options: Any) -> set[str]:
    settings = dataclasses.asdict(building.settings_of({**backend.OPTIONS, **options}))
    environment = {**os.environ, "POLYGRAPHY_USE_TENSORRT_RTX": "1"}
    root = Path(__file__).parents[4]
    command = [sys.executable, "-c", _FLAGS]
    done = subprocess.run(
        command, input=json.dumps(settings), env=environment, cwd=root, capture_output=True, text=True, check=True
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_device_memory_grows_with_the_profiles(tmp_path: Path) -> None:
    large = _compile_for_89(tmp_path)
    small = _compile_for_89(tmp_path, (Profile(Rows(1, 1, 4), Rows(1, 2, 2)),))
    # At least 510 more rows of a tensor [rows, T, D], two bytes per element.
    tokens, width, _ = FFN_SHAPE
    assert large.device_bytes - small.device_bytes >= 510 * tokens * width * 2
    assert small.device_bytes > 0


def test_flags_reach_the_library() -> None:
    # Not compiled: TensorRT-RTX needs a GPU for refittable engines.
    pytest.importorskip("tensorrt_rtx", reason="pip install 'ugsep[tensorrt-rtx]'")
    assert not _flags() & {"REFIT", "VERSION_COMPATIBLE"}
    assert {"REFIT", "VERSION_COMPATIBLE"} <= _flags(refit=True, version_compatible=True)
    assert building.settings_of({**backend.OPTIONS, "hardware_compatible": "ampere-plus"}).hardware_compatibility == (
        "AMPERE_PLUS"
    )


@pytest.mark.parametrize(
    ("rows", "cut"),
    [
        (Rows(1, 256, 1024), [(257, 1024), (65, 256), (2, 64), (1, 1)]),
        (Rows(1, 1, 2), [(2, 2), (1, 1)]),
        (Rows(3, 8, 8), [(3, 8)]),
        (Rows(1, 1, 1), [(1, 1)]),
    ],
)
def test_buckets_cover_every_size_once(rows: Rows, cut: list[tuple[int, int]]) -> None:
    made = building.buckets(Profile(Rows(1, 1, 4), rows))
    assert [(p.candidates.min, p.candidates.max) for p in made] == cut
    assert all(p.candidates.opt == p.candidates.max and p.users.max == 4 for p in made)
    sizes = sorted(n for low, high in cut for n in range(low, high + 1))
    assert sizes == list(range(rows.min, rows.max + 1))


@pytest.mark.gpu
@pytest.mark.skipif(gpu()[0] is None or not HERE.can_run, reason=f"needs TensorRT 11 and a GPU: {HERE.reason}")
def test_the_plugin_on_a_gpu(tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="pip install 'ugsep[triton]'")
    from engines.backends.trt.load import load_plan
    from tests.export.lowering_graphs import reference

    rng = np.random.default_rng()
    f32 = ffn(tmp_path / "f32.onnx", rng, True, "swiglu")
    spec = BuildSpec("full", to_half(f32, tmp_path / "full.onnx"), "w8a16", PROFILES)
    (tmp_path / "out").mkdir()
    trt = library.import_tensorrt()
    plugin = frozenset({"down.weight", "dense.weight"})
    plan, inputs, outputs, statuses = building._compile(
        spec, tmp_path / "out", backend.OPTIONS, None, plugin, str(gpu()[0])
    )
    assert plan.bytes > 0
    assert {f.name for f in statuses if "plugin" in f.detail} == plugin
    needs = {"compute_capability": str(gpu()[0])}
    built = BuiltEngine(
        backend.NAME, "full", "w8a16", (), 0, inputs, outputs, requires=needs, profiles=PROFILES, weights=statuses
    )
    runner = load_plan(trt, backend.NAME, tmp_path / "out", built)
    for rows in (1, 2, 71, 257):  # the last two are padded
        x = rng.standard_normal((rows, 3, 24)).astype(np.float32)
        want = reference(f32, {"x": x})["click"]
        np.testing.assert_allclose(runner.infer({"x": x})["click"].astype(np.float32), want, rtol=0, atol=5e-2)
    runner.close()


@pytest.mark.gpu
@pytest.mark.skipif(gpu()[0] is None or not HERE.can_run, reason=f"needs TensorRT 11 and a GPU: {HERE.reason}")
def test_scores_on_a_gpu(tmp_path: Path) -> None:
    rng = np.random.default_rng()
    f32 = ffn(tmp_path / "f32.onnx", rng, True, "swiglu")
    (tmp_path / "out").mkdir()
    spec = BuildSpec("full", to_half(f32, tmp_path / "full.onnx"), "w8a16", PROFILES, scratch=tmp_path / "timing")
    built = build_engine(backend, spec, tmp_path / "out", _silent)
    runner = backend.load(tmp_path / "out", built)
    from tests.export.lowering_graphs import reference

    for rows in (1, 2, 71, 257):  # the last two are padded
        feeds = {"x": rng.standard_normal((rows, 3, 24)).astype(np.float16)}
        want = reference(f32, {"x": feeds["x"].astype(np.float32)})["click"]
        for _ in range(3):  # run directly, captured, replayed
            got = runner.infer(feeds)["click"].astype(np.float32)
            np.testing.assert_allclose(got, want, rtol=0, atol=5e-2)  # FP16 sums of 72 terms, logits of 1..5
    runner.close()
