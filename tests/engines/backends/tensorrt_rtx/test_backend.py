import builtins
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from engines.backends.build import build_engine
from engines.backends.engine_spec import BuildSpec, Profile, Rows
from engines.backends.tensorrt_rtx import backend, library
from engines.backends.trt import load as trt_load
from engines.backends.trt.gpu import gpu
from graphs.base.errors import UgsepError
from tests.export.lowering_graphs import Graph, ffn, item, to_half

pytest.importorskip("tensorrt_rtx", reason="pip install 'ugsep[tensorrt-rtx]'")

PROFILE = Profile(Rows(1, 1, 4), Rows(1, 64, 256))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng()


def _silent(message: str) -> None:
    assert message


def _build(tmp_path: Path, source: Path, precision: str = "w8a16", side: str = "full", **options: Any):
    (tmp_path / "out").mkdir()
    spec = BuildSpec(side, source, precision, (PROFILE,), options)  # type: ignore[arg-type]  # a Literal
    return build_engine(backend, spec, tmp_path / "out", _silent)


@pytest.mark.parametrize("kind", ["gelu", "swiglu"])
def test_every_int8_weight_is_read_by_the_kernel_of_its_gemm(
    tmp_path: Path, rng: np.random.Generator, kind: str
) -> None:
    source = to_half(ffn(tmp_path / "f32.onnx", rng, True, kind), tmp_path / "full.onnx")
    built = _build(tmp_path, source)
    names = {"up.weight", "down.weight", "dense.weight"} | ({"gate.weight"} if kind == "swiglu" else set())
    assert {w.name for w in built.weights} == names
    assert {w.status for w in built.weights} == {"fused-int8"}, built.weights
    assert built.notes == ()
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["full.engine", "full.layers.json"]
    assert built.bytes == sum(p.stat().st_size for p in (tmp_path / "out").iterdir())
    layers = json.loads((tmp_path / "out" / "full.layers.json").read_text())
    from_int8 = [layer for layer in layers if "Int8" in dict(map(reversed, layer["constants"]))]
    assert len(from_int8) == 3  # up (with gate, merged), down, dense
    assert all(any(node.startswith("gemm:") for node in layer["nodes"]) for layer in from_int8)
    assert built.requires == {"compute_capability": "8.0,8.6,8.9,12.0"}
    assert built.inputs[0].dtype == "float16"


def test_a_large_int8_engine_is_about_half_its_fp16_twin(tmp_path: Path, rng: np.random.Generator) -> None:
    g = Graph(rng, True)
    g.add("MatMul", g.add("Relu", g.add("MatMul", "x", g.weight("a", 1024, 1536))), g.weight("b", 1536, 512), out="y")
    f32 = g.save(
        tmp_path / "f32.onnx", {"x": (onnx.TensorProto.FLOAT, ["candidates", 1024])}, {"y": ["candidates", 512]}
    )
    built = _build(tmp_path, to_half(f32, tmp_path / "full.onnx"), compute_capabilities="8.9")
    assert {w.status for w in built.weights} == {"fused-int8"}
    assert built.figures["engine_ratio"] < 0.6
    # int8 plus one FP16 scale per column, compared with FP16.
    assert built.figures["weight_ratio"] == pytest.approx(0.5, abs=0.02)
    assert built.figures["engine_bytes"] > 1024 * 1536 + 1536 * 512


def test_item_side_with_an_int8_table(tmp_path: Path, rng: np.random.Generator) -> None:
    source = to_half(item(tmp_path / "f32.onnx", rng, True), tmp_path / "item.onnx")
    built = _build(tmp_path, source, side="item", compute_capabilities="8.6,12.0", twin=False)
    statuses = {w.name: w.status for w in built.weights}
    assert statuses["mix.weight"] == "fused-int8"
    assert statuses["table"] in ("gathered-int8", "dequantized-each-run")
    assert {i.name: i.dtype for i in built.inputs} == {"ids": "int64", "user_index": "int64", "state": "float16"}


def test_fp16_from_the_fp32_graph(tmp_path: Path, rng: np.random.Generator) -> None:
    built = _build(tmp_path, ffn(tmp_path / "full.onnx", rng, False, "gelu"), "fp16", compute_capabilities="8.0")
    assert built.weights == ()
    assert built.inputs[0].dtype == "float16"


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ("8.8", "compute capability '8.8', did you mean '8."),
        ("", "no compute capability given"),
        ("rtx", "known: 12.0"),
    ],
)
def test_unknown_capabilities(tmp_path: Path, rng: np.random.Generator, asked: str, says: str) -> None:
    source = to_half(ffn(tmp_path / "f32.onnx", rng, True, "gelu"), tmp_path / "full.onnx")
    with pytest.raises(UgsepError, match=says):
        _build(tmp_path, source, compute_capabilities=asked)


def test_a_graph_that_does_not_compile_leaves_nothing(tmp_path: Path, rng: np.random.Generator) -> None:
    g = Graph(rng, True)
    g.add("MatMul", "x", g.weight("w", 8, 4), out="y")  # a dynamic axis in no profile
    f32 = g.save(tmp_path / "f32.onnx", {"x": (onnx.TensorProto.FLOAT, ["rows", 8])}, {"y": ["rows", 4]})
    with pytest.raises(UgsepError, match="dynamic axis 'rows'; call it 'users' or 'candidates'"):
        _build(tmp_path, to_half(f32, tmp_path / "full.onnx"))
    assert list((tmp_path / "out").iterdir()) == []


def test_graphs_that_do_not_compile_are_one_line(tmp_path: Path, rng: np.random.Generator) -> None:
    float32, float16 = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16
    g = Graph(rng, True)
    g.add("MatMul", g.add("Cast", "x", to=float16), g.weight("w", 8, 4), out="y")  # FP16 rows, FP32 weight
    source = g.save(
        tmp_path / "mixed.onnx", {"x": (float32, ["candidates", 8])}, {"y": ["candidates", 4]}, check=False
    )
    with pytest.raises(UgsepError, match=r"mixed|lowered|full") as error:
        _build(tmp_path, source)
    assert "\n" not in str(error.value)


@pytest.mark.skipif(gpu()[0] is not None, reason="this machine has a GPU")
def test_it_says_why_it_cannot_run_here(tmp_path: Path, rng: np.random.Generator) -> None:
    here = backend.probe()
    assert (here.can_build, here.can_run) == (True, False)
    assert "compiles here but cannot run" in here.reason
    source = to_half(ffn(tmp_path / "f32.onnx", rng, True, "gelu"), tmp_path / "full.onnx")
    built = _build(tmp_path, source, twin=False, compute_capabilities="8.9")
    with pytest.raises(UgsepError, match=r"full engine needs a GPU of compute capability 8.9: .+"):
        backend.load(tmp_path / "out", built)


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "tensorrt_rtx":
            raise ImportError("No module named 'tensorrt_rtx'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    here = backend.probe()
    assert not here.can_build
    assert "pip install 'ugsep[tensorrt-rtx]'" in here.reason


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda data: data[: len(data) // 2], "cannot load it .*Serialization"),
        (lambda data: b"a plan of another library" + data, "cannot load it .*incompatible serialization version"),
        (lambda data: b"", "cannot load it .*empty"),
    ],
    ids=["truncated", "another version", "empty"],
)
def test_plans_the_library_refuses(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, damage: Any, says: str
) -> None:
    # The library reads a plan's header before it uses a GPU, so its own error is tested too.

    source = to_half(ffn(tmp_path / "f32.onnx", rng, True, "gelu"), tmp_path / "full.onnx")
    built = _build(tmp_path, source, twin=False, compute_capabilities="8.9")
    plan = tmp_path / "out" / "full.engine"
    plan.write_bytes(damage(plan.read_bytes()))
    monkeypatch.setattr(trt_load, "gpu", lambda: ("8.9", ""))
    with pytest.raises(UgsepError, match=says) as error:
        backend.load(tmp_path / "out", built)
    assert "\n" not in str(error.value)
    assert f"built with {built.tools['tensorrt-rtx']}" in str(error.value)


def test_a_gpu_of_another_generation_is_refused_before_loading(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:

    source = to_half(ffn(tmp_path / "f32.onnx", rng, True, "gelu"), tmp_path / "full.onnx")
    built = _build(tmp_path, source, twin=False, compute_capabilities="8.6,8.9")
    monkeypatch.setattr(trt_load, "gpu", lambda: ("9.0", ""))
    with pytest.raises(UgsepError, match=r"is for compute capability 8.6,8.9, this GPU has 9.0; build it again here"):
        backend.load(tmp_path / "out", built)


def test_specialization_is_pinned_and_checked(tmp_path: Path, rng: np.random.Generator) -> None:
    import tensorrt_rtx as trt

    source = to_half(ffn(tmp_path / "f32.onnx", rng, True, "gelu"), tmp_path / "full.onnx")
    built = _build(tmp_path, source, twin=False, compute_capabilities="8.9", specialization="eager")
    assert built.session == {"specialization": "eager"}
    assert library.specialization(trt, "none").name == "NONE"
    with pytest.raises(UgsepError, match="specialization 'lazyy', did you mean 'lazy'"):
        library.specialization(trt, "lazyy")


@pytest.mark.gpu
@pytest.mark.skipif(
    not backend.probe().can_run, reason=f"needs a GPU TensorRT-RTX supports: {backend.probe().reason}"
)
def test_user_state_stays_on_a_gpu(tmp_path: Path, rng: np.random.Generator) -> None:
    from engines.serve.ranker import Ranker
    from tests.export.lowering_graphs import reference

    g = Graph(rng, False)
    g.add("Tanh", g.add("MatMul", "profile", g.weight("w", 8, 16)), out="state")
    kind = onnx.TensorProto.FLOAT
    user = g.save(tmp_path / "user.onnx", {"profile": (kind, ["users", 8])}, {"state": ["users", 16]})
    items = item(tmp_path / "item.onnx", rng, False)
    runners, records = [], []
    for side, source in (("user", user), ("item", items)):
        (tmp_path / side).mkdir()
        spec = BuildSpec(side, source, "fp16", (PROFILE,), {"twin": False})  # type: ignore[arg-type]  # a Literal
        records.append(build_engine(backend, spec, tmp_path / side, _silent))
        runners.append(backend.load(tmp_path / side, records[-1], runtime_cache=tmp_path / "kernels"))
    ranker = Ranker(runners[0], runners[1], records[0], records[1])
    features = {"profile": rng.standard_normal((1, 8)).astype(np.float32)}
    for rows in (1, 5, 5, 5, 9):  # run directly, captured, replayed
        ids = rng.integers(0, 50, rows)
        feeds = {"ids": ids, "user_index": np.zeros(rows, np.int64), "state": reference(user, features)["state"]}
        # FP16 tables of magnitude one, and means of sigmoids.
        want = reference(items, feeds)["click"]
        np.testing.assert_allclose(ranker.score(features, {"ids": ids})["click"], want, rtol=0, atol=2e-2)
    assert ranker.cache_info().hits == 4
    ranker.close()
    assert (tmp_path / "kernels").stat().st_size > 0
