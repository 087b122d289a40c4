from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from engines.backend import BuildSpec, BuiltEngine, Profile, Rows
from engines.backends import tensorrt as backend
from engines.backends._graph_io import graph_io, read_graph
from engines.backends._trt_build import Layer, build_plan, int8_fates, row_counts
from engines.backends._trt_runner import accepts, gpu
from engines.backends._w8a16_plugin import problem_size
from export.lowering_tensorrt import lower_for_tensorrt
from graphs.errors import UgsepError
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
        backend.build(BuildSpec("full", source, "w8a16"), tmp_path, _silent)
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
        backend.check_values({**backend.OPTIONS, **option})


def test_the_configuration_compiles_with_buckets_and_refit(tmp_path: Path) -> None:
    # TensorRT-RTX shares the builder's interface and compiles without a GPU: the same calls, a real compiler.
    trt = pytest.importorskip("tensorrt_rtx", reason="pip install 'ugsep[tensorrt-rtx]'")
    source = to_half(ffn(tmp_path / "f32.onnx", np.random.default_rng(), True, "swiglu"), tmp_path / "full.onnx")
    lowered = lower_for_tensorrt(source, tmp_path / "lowered.onnx")
    inputs, _ = graph_io(read_graph(lowered.path))
    seen: list[Any] = []

    def settle(builder: Any, config: Any) -> None:
        backend.configure(trt, config, {**backend.OPTIONS, "workspace_mb": 64, "optimization_level": 2})
        config.num_compute_capabilities = 1
        config.set_compute_capability(trt.ComputeCapability.SM89, 0)
        seen.append(config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE))

    plan = build_plan(trt, lowered.path, inputs, PROFILES, settle)
    assert seen == [64 << 20]
    # Beside what both take, 510 rows more of at least one tensor [rows, T, D] in two bytes each.
    small = build_plan(trt, lowered.path, inputs, (Profile(Rows(1, 1, 4), Rows(1, 2, 2)),), settle)
    tokens, width, _ = FFN_SHAPE
    assert plan.device_bytes - small.device_bytes >= 510 * tokens * width * 2
    assert small.device_bytes > 0
    fates = int8_fates(plan.layers, {"down.weight": "down.weight", "gone": "gone"})
    assert [f.fate for f in fates] == ["fused-int8", "folded-to-float"]


def test_options_reach_the_library() -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="pip install 'ugsep[tensorrt-rtx]'")
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    plain, full = builder.create_builder_config(), builder.create_builder_config()
    flags = (trt.BuilderFlag.REFIT, trt.BuilderFlag.VERSION_COMPATIBLE)
    backend.configure(trt, plain, backend.OPTIONS)
    assert [plain.get_flag(flag) for flag in flags] == [False, False]
    options = {**backend.OPTIONS, "version_compatible": True, "refit": True, "hardware_compatible": "ampere-plus"}
    backend.configure(trt, full, options | {"optimization_level": 5})
    assert [full.get_flag(flag) for flag in flags] == [True, True]
    assert full.builder_optimization_level == 5


def test_a_single_row_leaves_room_for_a_second() -> None:
    spec = graph_io_spec("x", ["users", 3])
    assert row_counts(Profile(Rows(1, 1, 1)), spec) == ([1, 3], [1, 3], [2, 3])
    assert row_counts(Profile(Rows(2, 4, 8)), spec) == ([2, 3], [4, 3], [8, 3])


def graph_io_spec(name: str, shape: list[Any]) -> Any:
    info = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT16, shape)
    inputs, _ = graph_io(onnx.helper.make_model(onnx.helper.make_graph([], "g", [info], [])))
    return inputs[0]


@pytest.mark.parametrize(
    ("wanted", "capability", "runs"),
    [
        ("8.6,8.9", "8.9", True),
        ("8.6,8.9", "8.0", False),
        ("8.0+", "9.0", True),
        ("8.0+", "7.5", False),
        ("", "8.0", False),
    ],
)
def test_capabilities(wanted: str, capability: str, runs: bool) -> None:
    assert accepts(wanted, capability) == runs
    assert accepts("8.9", "8.10") is False


def test_a_weight_in_the_plugin_is_read_as_int8() -> None:
    layer = Layer("w8a16_gemm_0", "PluginV3", (("w_constant", "Int8"),), ("gemm:w",))
    (inside,) = int8_fates((layer,), {"w": "w"}, frozenset({"w"}))
    assert (inside.fate, inside.detail) == ("fused-int8", "w8a16_gemm_0 plugin")
    (lost,) = int8_fates((), {"w": "w"}, frozenset({"w"}))  # the plugin is not in the engine
    assert lost.fate == "folded-to-float"


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
    made = backend.buckets(Profile(Rows(1, 1, 4), rows))
    assert [(p.candidates.min, p.candidates.max) for p in made] == cut
    assert all(p.candidates.opt == p.candidates.max and p.users.max == 4 for p in made)
    sizes = sorted(n for low, high in cut for n in range(low, high + 1))
    assert sizes == list(range(rows.min, rows.max + 1))


def test_the_plugin_s_problem_size() -> None:
    assert problem_size((8, 33, 64), (8, 64, 96)) == (8, 33, 64, 96)
    assert problem_size((5, 7, 64), (64, 96)) == (1, 35, 64, 96)
    assert problem_size((5, 64), (64, 96)) == (1, 5, 64, 96)


@pytest.mark.gpu
@pytest.mark.skipif(gpu()[0] is None or not HERE.can_run, reason=f"needs TensorRT 11 and a GPU: {HERE.reason}")
def test_the_plugin_on_a_gpu(tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="pip install 'ugsep[triton]'")
    from engines.backends._trt_runner import load_plan
    from engines.backends._w8a16_plugin import register_plugin
    from tests.export.lowering_graphs import reference

    rng = np.random.default_rng()
    f32 = ffn(tmp_path / "f32.onnx", rng, True, "swiglu")
    spec = BuildSpec("full", to_half(f32, tmp_path / "full.onnx"), "w8a16", PROFILES)
    (tmp_path / "out").mkdir()
    trt = backend._import()
    register_plugin(str(gpu()[0]))
    plugin = frozenset({"down.weight", "dense.weight"})
    plan, inputs, outputs, fates = backend._compile(trt, spec, tmp_path / "out", backend.OPTIONS, None, plugin)
    assert {f.name for f in fates if "plugin" in f.detail} == plugin
    (tmp_path / "out" / "full.engine").write_bytes(plan.data)
    needs = {"compute_capability": str(gpu()[0])}
    built = BuiltEngine(
        backend.NAME, "full", "w8a16", (), 0, inputs, outputs, requires=needs, profiles=PROFILES, weights=fates
    )
    runner = load_plan(trt, backend.NAME, tmp_path / "out", built)
    for rows in (1, 2, 257):
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
    built = backend.build(spec, tmp_path / "out", _silent)
    runner = backend.load(tmp_path / "out", built)
    from tests.export.lowering_graphs import reference

    for rows in (1, 2, 257):
        feeds = {"x": rng.standard_normal((rows, 3, 24)).astype(np.float16)}
        want = reference(f32, {"x": feeds["x"].astype(np.float32)})["click"]
        for _ in range(3):  # direct, recorded, replayed
            got = runner.infer(feeds)["click"].astype(np.float32)
            np.testing.assert_allclose(got, want, rtol=0, atol=5e-2)  # FP16 sums of 72 terms, logits of size 1..5
    runner.close()
