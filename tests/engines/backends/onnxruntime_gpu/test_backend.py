"""ONNX Runtime on GPUs: without one, tests run on host memory where possible and are skipped otherwise."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from engines.backends.build import build_engine
from engines.backends.built_engine import BuiltEngine, TensorSpec
from engines.backends.contract import DeviceRunner
from engines.backends.engine_spec import BuildSpec, Profile, Rows
from engines.backends.graph_io import graph_io
from engines.backends.onnxruntime.session import start_session
from engines.backends.onnxruntime.weight_status import check_weight_statuses, weight_statuses
from engines.backends.onnxruntime_gpu import backend
from engines.backends.onnxruntime_gpu import build as building
from engines.backends.onnxruntime_gpu import session as gpu_session
from engines.backends.onnxruntime_gpu.bound import BoundRunner, OrtArray
from engines.serve.ranker import Ranker
from export.io import read_graph
from graphs.base.errors import UgsepError
from tests.export.lowering_graphs import Graph, ffn, item, reference, to_half

HERE = backend.probe()


def _silent(message: str) -> None:
    assert message


def _on_host(source: Path, folder: Path, side: Any, precision: str) -> tuple[BoundRunner, BuiltEngine]:
    """Lower a graph for a GPU, check its weights, and bind it to host memory."""
    folder.mkdir()
    spec = BuildSpec(side, source, precision)
    record = building.lower_graph(spec, folder)
    file = record.path
    settings = gpu_session.session_settings(backend.OPTIONS)
    optimised = folder / "optimised.onnx"
    session = start_session(ort, file, settings, optimised)
    compiled = onnx.load(optimised, load_external_data=False)
    statuses = ()
    if precision in ("fp32", "w8a32"):  # in FP16 the CPU inserts casts around every GEMM, which hide its weights
        statuses = weight_statuses(read_graph(source), read_graph(file), compiled, record)
        check_weight_statuses(spec, statuses)
    assert "DequantizeLinear" not in {node.op_type for node in compiled.graph.node}
    inputs, outputs = graph_io(read_graph(file))
    built = BuiltEngine(
        backend.NAME, side, precision, (), 0, inputs, outputs, settings, profiles=(Profile(),), weights=statuses
    )
    return BoundRunner(session, built, "cpu", 0), built


@pytest.mark.parametrize(
    ("precision", "bound"),
    # FP32: reordered sums. FP16: sums of 72 products of rounded terms, logits of magnitude 1 to 5.
    [("fp32", 2e-5), ("w8a32", 2e-5), ("fp16", 5e-2), ("w8a16", 5e-2)],
)
def test_weights_run_as_named_and_scores_are_right(tmp_path: Path, precision: str, bound: float) -> None:
    rng = np.random.default_rng()
    f32 = ffn(tmp_path / "f32.onnx", rng, precision.startswith("w8"), "swiglu")
    source = to_half(f32, tmp_path / "f16.onnx") if precision == "w8a16" else f32
    runner, built = _on_host(source, tmp_path / "out", "full", precision)
    statuses = {w.name: w.status for w in built.weights}
    wanted = "folded-to-float" if precision.startswith("w8") else "float"
    for name in ("up.weight", "gate.weight", "down.weight", "dense.weight"):
        assert statuses.get(name, wanted) == wanted
    assert bool(statuses) == precision.endswith("32")
    for rows in (1, 2, 65):
        x = rng.standard_normal((rows, 3, 24)).astype(np.float32)
        got = runner.infer({"x": x})["click"].astype(np.float32)
        np.testing.assert_allclose(got, reference(f32, {"x": x})["click"], rtol=0, atol=bound)


def _user(path: Path, rng: np.random.Generator) -> Path:
    """User side of ``item``: state [users, 16] from 7 numbers."""
    g = Graph(rng, False)
    g.add("Tanh", g.add("MatMul", "profile", g.weight("w", 7, 16)), out="state")
    return g.save(path, {"profile": (onnx.TensorProto.FLOAT, ["users", 7])}, {"state": ["users", 16]})


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Any, Any, Path, Path]:
    rng = np.random.default_rng()
    user, items = _user(tmp_path / "user.onnx", rng), item(tmp_path / "item.onnx", rng, True)
    return (
        _on_host(user, tmp_path / "u", "user", "fp32"),
        _on_host(items, tmp_path / "i", "item", "w8a32"),
        user,
        items,
    )


def test_state_goes_from_engine_to_engine_as_device_values(pair: Any) -> None:
    (user_runner, user_built), (item_runner, item_built), user_file, item_file = pair
    assert {w.name: w.status for w in item_built.weights}["table"] == "gathered-int8"
    assert isinstance(user_runner, DeviceRunner)
    rng = np.random.default_rng()
    ranker = Ranker(user_runner, item_runner, user_built, item_built)
    user = {"profile": rng.standard_normal((1, 7)).astype(np.float32)}
    first: dict[str, Any] = {}
    for rows in (5, 9):
        ids = rng.integers(0, 50, rows)
        got = ranker.score(user, {"ids": ids})["click"]
        state = reference(user_file, user)["state"]
        feeds = {"ids": ids, "user_index": np.zeros(rows, np.int64), "state": state}
        np.testing.assert_allclose(got, reference(item_file, feeds)["click"], rtol=0, atol=1e-6)
        first.setdefault("state", state)
    assert ranker.cache_info().bytes == (16 + 7) * 4  # the state and the features it was made from
    # Another user's run must not change the first user's state on the device.
    ranker.score({"profile": np.ones((1, 7), np.float32)}, {"ids": np.array([3])})
    np.testing.assert_allclose(ranker.user_state(user)["state"], first["state"], rtol=0, atol=1e-6)
    assert ranker.cache_info().hits == 2


def test_values_of_another_dtype_or_shape_on_the_device(pair: Any) -> None:
    (user_runner, _), (item_runner, _), _, _ = pair
    state = user_runner.infer_on_device({"profile": np.ones((2, 7), np.float32)})["state"]
    assert state.shape == (2, 16)
    ids = {"ids": np.array([1, 2, 3]), "user_index": np.array([1, 0, 1])}
    want = item_runner.infer({**ids, "state": state})["click"]
    fp16 = ort.OrtValue.ortvalue_from_numpy(state.numpy().astype(np.float16))
    got = item_runner.infer({**ids, "state": OrtArray(fp16, fp16.tensor_size_in_bytes())})["click"]
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-3)  # the state rounded to FP16, sigmoids of it
    wide = ort.OrtValue.ortvalue_from_numpy(np.ones((2, 17), np.float32))
    with pytest.raises(UgsepError, match=r"'state' is \[2, 17\] on the device; the engine takes \[users, 16\]"):
        item_runner.infer({**ids, "state": OrtArray(wide, 136)})
    with pytest.raises(UgsepError, match="check that ids lie within"):
        item_runner.infer({**ids, "ids": np.array([1, 2, 50]), "state": state})
    with pytest.raises(UgsepError, match="input 'ids' is missing"):
        item_runner.infer({"user_index": ids["user_index"], "state": state})
    item_runner.close()
    with pytest.raises(UgsepError, match="closed"):
        item_runner.infer({**ids, "state": state})


def test_bindings_from_several_threads(pair: Any) -> None:
    (user_runner, _), _, user_file, _ = pair
    work = [{"profile": np.random.default_rng().standard_normal((n, 7)).astype(np.float32)} for n in (1, 4, 9)]
    wanted = [reference(user_file, feeds)["state"] for feeds in work]
    wrong: list[int] = []

    def run(i: int) -> None:
        for _ in range(30):
            if not np.allclose(user_runner.infer(work[i])["state"], wanted[i], rtol=0, atol=1e-6):
                wrong.append(i)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_profiles_become_options_of_the_tensorrt_provider() -> None:
    inputs = (TensorSpec("x", "float32", ("candidates", 3)), TensorSpec("s", "float32", ("users", 2, 5)))
    found = building._profile_shapes(inputs, (Profile(Rows(1, 1, 4), Rows(1, 16, 64)),))
    assert found == {
        "trt_profile_min_shapes": "x:1x3,s:1x2x5",
        "trt_profile_opt_shapes": "x:16x3,s:1x2x5",
        "trt_profile_max_shapes": "x:64x3,s:4x2x5",
    }


def test_options_are_checked(tmp_path: Path) -> None:
    source = ffn(tmp_path / "f32.onnx", np.random.default_rng(), False, "gelu")
    for options, says in [
        ({"provider": "tensorrtx"}, "did you mean 'tensorrt'"),
        ({"gpu": 1}, "unknown option 'gpu'"),
    ]:
        with pytest.raises(UgsepError, match=says):
            build_engine(backend, BuildSpec("full", source, "fp32", options=options), tmp_path, _silent)  # type: ignore[arg-type]  # invariant


@pytest.mark.skipif(HERE.can_build, reason="a GPU is here")
def test_without_a_gpu_it_says_what_is_missing(tmp_path: Path) -> None:
    assert not HERE.can_run
    assert "ugsep[gpu]" in HERE.reason or "no NVIDIA driver or GPU" in HERE.reason
    source = ffn(tmp_path / "f32.onnx", np.random.default_rng(), False, "gelu")
    (tmp_path / "out").mkdir()
    with pytest.raises(UgsepError, match="backend 'onnxruntime-gpu' cannot build here: onnxruntime") as error:
        build_engine(backend, BuildSpec("full", source, "fp32"), tmp_path / "out", _silent)
    assert "\n" not in str(error.value)
    assert list((tmp_path / "out").iterdir()) == []
    built = BuiltEngine(backend.NAME, "full", "fp32", (), 0, (), (), gpu_session.session_settings(backend.OPTIONS))
    with pytest.raises(UgsepError, match="full engine needs an NVIDIA GPU: onnxruntime"):
        backend.load(tmp_path, built)


def test_a_session_that_fell_back_to_the_cpu_is_refused(tmp_path: Path) -> None:
    source = ffn(tmp_path / "f32.onnx", np.random.default_rng(), False, "gelu")
    session = start_session(ort, source, gpu_session.session_settings(backend.OPTIONS))
    with pytest.raises(UgsepError, match="on CPUExecutionProvider instead of CUDAExecutionProvider"):
        gpu_session.check_provider(session, "CUDAExecutionProvider")


@pytest.mark.gpu
@pytest.mark.skipif(not HERE.can_run, reason=f"needs onnxruntime-gpu and a GPU: {HERE.reason}")
@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_scores_on_a_gpu(tmp_path: Path, provider: str) -> None:
    rng = np.random.default_rng()
    f32 = ffn(tmp_path / "f32.onnx", rng, True, "swiglu")
    (tmp_path / "out").mkdir()
    spec = BuildSpec("full", to_half(f32, tmp_path / "f16.onnx"), "w8a16", options={"provider": provider})
    built = build_engine(backend, spec, tmp_path / "out", _silent)
    runner = backend.load(tmp_path / "out", built)
    for rows in (1, 2, 257):
        x = rng.standard_normal((rows, 3, 24)).astype(np.float32)
        got = runner.infer({"x": x})["click"].astype(np.float32)
        np.testing.assert_allclose(got, reference(f32, {"x": x})["click"], rtol=0, atol=5e-2)
    runner.close()
