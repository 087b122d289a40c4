import dataclasses
import threading
from pathlib import Path

import numpy as np
import onnx
import pytest

from engines.backends.build import build_engine
from engines.backends.checks import check_precision
from engines.backends.engine_spec import BuildSpec, Profile, Rows
from engines.backends.onnxruntime import backend
from engines.backends.table import backend_names, find_backend
from export.activations import activations_text, range_between
from export.io import stamp
from graphs.base.errors import UgsepError
from tests.export.lowering_graphs import FFN_SHAPE, Graph, ffn, item, reference

TOKENS, WIDTH, _ = FFN_SHAPE


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng()


def _silent(message: str) -> None:
    assert message


def _rows(rng: np.random.Generator, rows: int) -> dict[str, np.ndarray]:
    return {"x": rng.standard_normal((rows, TOKENS, WIDTH)).astype(np.float32)}


@pytest.mark.parametrize("kind", ["gelu", "swiglu"])
@pytest.mark.parametrize(
    ("precision", "status", "bound"),
    # Exact numerics differ only by summation order; int8 activations by about 1/254 per GEMM and row.
    [("fp32", "float", 2e-5), ("w8a32", "folded-to-float", 2e-5), ("w8a8-dynamic", "fused-int8", 0.2)],
)
def test_every_weight_runs_as_the_precision_says(
    tmp_path: Path, rng: np.random.Generator, kind: str, precision: str, status: str, bound: float
) -> None:
    source = ffn(tmp_path / "onnx" / "full.onnx", rng, precision != "fp32", kind)
    built = build_engine(backend, BuildSpec("full", source, precision), tmp_path, _silent)
    statuses = {weight.name: weight.status for weight in built.weights}
    assert statuses.pop("head.weight") == "float"
    assert set(statuses) == {"up.weight", "down.weight", "dense.weight"} | (
        {"gate.weight"} if kind == "swiglu" else set()
    )
    assert set(statuses.values()) == {status}
    runner = backend.load(tmp_path, built)
    for rows in (1, 2, 257):
        feeds = _rows(rng, rows)
        want = reference(source, feeds)["click"]
        assert np.abs(runner.infer(feeds)["click"] - want).max() < bound
    runner.close()
    with pytest.raises(UgsepError, match="closed"):
        runner.infer(feeds)


def stamp_ranges(source: Path, ranges: dict[str, tuple[float, float]]) -> None:
    model = onnx.load(source, load_external_data=False)
    found = {name: between for name, ends in ranges.items() if (between := range_between(*ends)) is not None}
    stamp(model, activations=activations_text(found))
    onnx.save(model, source)


def test_calibrated_products_are_read_back_and_the_others_noted(tmp_path: Path, rng: np.random.Generator) -> None:
    source = ffn(tmp_path / "onnx" / "full.onnx", rng, True, "gelu")
    spec = BuildSpec("full", source, "w8a8-static", (Profile(Rows(1, 1, 1), Rows(1, 64, 300)),))
    with pytest.raises(UgsepError, match=r"full.onnx' has no ranges of activations; quantize it again"):
        build_engine(backend, spec, tmp_path, _silent)
    # Inputs are normal numbers; GELU of sums of 24 products of them with weights of size 1 / 24 ** 0.5.
    stamp_ranges(source, {"up.weight": (-5.0, 5.0), "down.weight": (-0.17, 6.0)})
    built = build_engine(backend, spec, tmp_path, _silent)
    details = {weight.name: (weight.status, weight.detail) for weight in built.weights}
    assert details["up.weight"] == ("fused-int8", "3 x MatMulIntegerToFloat, calibrated")
    assert details["dense.weight"] == ("fused-int8", "MatMulIntegerToFloat")
    assert "1 of 3 int8 products scale every row: no calibrated range for dense.weight" in built.notes
    runner = backend.load(tmp_path, built)
    for rows in (2, 257):
        feeds = _rows(rng, rows)
        # Twice the error with a scale per row: a step is 1/25, not 1/127 of a row's largest value (2 to 3).
        assert np.abs(runner.infer(feeds)["click"] - reference(source, feeds)["click"]).max() < 0.4
    runner.close()


@pytest.fixture
def engine(tmp_path: Path, rng: np.random.Generator):
    (tmp_path / "out").mkdir()
    source = ffn(tmp_path / "onnx" / "full.onnx", rng, True, "gelu")
    options = {"save_optimized": True}
    return tmp_path / "out", build_engine(
        backend, BuildSpec("full", source, "w8a32", options=options), tmp_path / "out", _silent
    )


def test_a_single_row_keeps_small_weights_in_one_gemm(tmp_path: Path, rng: np.random.Generator) -> None:
    source = ffn(tmp_path / "onnx" / "user.onnx", rng, True, "gelu")
    details = {}
    for users in (1, 8):
        (tmp_path / f"out{users}").mkdir()
        spec = BuildSpec("user", source, "w8a32", (Profile(Rows(1, users, 8)),))
        built = build_engine(backend, spec, tmp_path / f"out{users}", _silent)
        assert {w.status for w in built.weights} == {"folded-to-float", "float"}
        details[users] = next(w.detail for w in built.weights if w.name == "up.weight")
    assert (details[1], details[8]) == ("FusedMatMul", "3 x Gemm")  # the first has the Transpose folded in


def test_build_leaves_exactly_the_files_it_names(engine) -> None:
    directory, built = engine
    assert sorted(p.name for p in directory.iterdir()) == sorted(built.files)
    assert built.bytes == sum(p.stat().st_size for p in directory.iterdir())
    assert built.session["intra_op_num_threads"] == 1
    assert built.inputs[0].shape == ("candidates", TOKENS, WIDTH)


def test_the_optimised_graph_is_for_this_cpu_only(engine, rng: np.random.Generator) -> None:
    directory, built = engine
    feeds = _rows(rng, 5)
    fast = backend.load(directory, built).infer(feeds)["click"]
    (directory / "full.optimised.onnx").write_bytes(b"for another machine")
    with pytest.raises(UgsepError, match="cannot load it"):
        backend.load(directory, built)
    elsewhere = dataclasses.replace(built, requires={"isa": "not-this-one"})
    portable = backend.load(directory, elsewhere).infer(feeds)["click"]
    np.testing.assert_allclose(fast, portable, rtol=0, atol=2e-5)


def test_infer_from_several_threads(engine, rng: np.random.Generator) -> None:
    directory, built = engine
    runner = backend.load(directory, built, threads=1)
    work = [_rows(rng, rows) for rows in (1, 3, 50, 7)]
    want = [runner.infer(feeds)["click"] for feeds in work]
    got: dict[int, np.ndarray] = {}

    def run(index: int) -> None:
        for _ in range(20):
            got[index] = runner.infer(work[index])["click"]

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(work))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(got[i], want[i]) for i in range(len(work)))


def test_item_side(tmp_path: Path, rng: np.random.Generator) -> None:
    source = item(tmp_path / "onnx" / "item.onnx", rng, True)
    (tmp_path / "out").mkdir()
    built = build_engine(backend, BuildSpec("item", source, "w8a32"), tmp_path / "out", _silent)
    assert {w.name: w.status for w in built.weights} == {"table": "gathered-int8", "mix.weight": "folded-to-float"}
    feeds = {
        "ids": rng.integers(0, 50, 9),
        "user_index": rng.integers(0, 2, 9),
        "state": rng.standard_normal((2, 16)).astype(np.float32),
    }
    got = backend.load(tmp_path / "out", built).infer(feeds)["click"]
    np.testing.assert_allclose(got, reference(source, feeds)["click"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("encoding", ["zero point", "blocks"])
def test_a_weight_that_would_not_run_as_named_fails_the_build(
    tmp_path: Path, rng: np.random.Generator, encoding: str
) -> None:
    g = Graph(rng, True)
    k, n = 32, 6
    q = g.const("odd.weight", rng.integers(-127, 128, (k, n), dtype=np.int8))
    if encoding == "zero point":
        s = g.const("s", np.full(n, 0.01, np.float32))
        w = g.add("DequantizeLinear", q, s, g.const("zero", np.ones(n, np.int8)), axis=1)
    else:
        s = g.const("s", np.full((2, n), 0.01, np.float32))
        w = g.add("DequantizeLinear", q, s, axis=0, block_size=16)
    g.add("MatMul", "x", w, out="y")
    float32 = onnx.TensorProto.FLOAT
    source = g.save(tmp_path / "onnx" / "full.onnx", {"x": (float32, ["m", k])}, {"y": ["m", n]})
    with pytest.raises(UgsepError, match=r"1 weights do not run as w8a8-dynamic: odd.weight"):
        build_engine(backend, BuildSpec("full", source, "w8a8-dynamic"), tmp_path, _silent)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda f: {}, "input 'x' is missing"),
        (lambda f: f | {"y": f["x"]}, "unknown input 'y'"),
        (
            lambda f: {"x": f["x"].astype(np.float64)},
            r"'x' is float64\[4, 3, 24\]; the engine takes float32\[candidates",
        ),
        (lambda f: {"x": f["x"][:, :, :-1]}, r"'x' is float32\[4, 3, 23\]"),
        (lambda f: {"x": f["x"][0]}, r"'x' is float32\[3, 24\]"),
        (lambda f: {"x": f["x"][:0]}, "'x' has no rows"),
    ],
)
def test_wrong_feeds_are_refused_and_the_runner_lives_on(engine, rng, change, says: str) -> None:
    directory, built = engine
    runner = backend.load(directory, built)
    with pytest.raises(UgsepError, match=says):
        runner.infer(change(_rows(rng, 4)))
    assert runner.infer(_rows(rng, 4))["click"].shape == (4,)


def test_an_engine_that_is_not_what_the_manifest_says(engine) -> None:
    directory, built = engine
    other = dataclasses.replace(built, inputs=(dataclasses.replace(built.inputs[0], name="z"),), requires={})
    with pytest.raises(UgsepError, match="inputs are x but the manifest says z"):
        backend.load(directory, other)
    for name in ("full.onnx", "full.optimised.onnx"):
        (directory / name).write_bytes((directory / name).read_bytes()[:100])
    with pytest.raises(UgsepError, match="cannot load it") as error:
        backend.load(directory, built)
    assert "\n" not in str(error.value)


def test_names_and_options_are_checked(tmp_path: Path, rng: np.random.Generator) -> None:
    assert {"onnxruntime", "tensorrt-rtx"} <= set(backend_names())
    with pytest.raises(UgsepError, match="unknown backend 'onnxrutime', did you mean 'onnxruntime'"):
        find_backend("onnxrutime")
    found = find_backend("onnxruntime")
    assert check_precision("onnxruntime", found, "w8a8-dynamic") == "w8a32"
    with pytest.raises(UgsepError, match="does not build precision 'w8a16'"):
        check_precision("onnxruntime", found, "w8a16")
    source = ffn(tmp_path / "onnx" / "full.onnx", rng, False, "gelu")
    for options, says in [({"thread": 1}, "did you mean 'threads'"), ({"threads": "1"}, "give an integer")]:
        with pytest.raises(UgsepError, match=says):
            build_engine(backend, BuildSpec("full", source, "fp32", options=options), tmp_path, _silent)  # type: ignore[arg-type]  # invariant


def test_an_engine_never_overwrites_its_source(tmp_path: Path, rng: np.random.Generator) -> None:
    source = ffn(tmp_path / "full.onnx", rng, False, "gelu")
    before = source.read_bytes()
    with pytest.raises(UgsepError, match="would overwrite the graph"):
        build_engine(backend, BuildSpec("full", source, "fp32"), tmp_path, _silent)
    assert source.read_bytes() == before


def test_probe_says_what_runs() -> None:
    here = backend.probe()
    assert here.can_build
    assert here.can_run
    assert "onnxruntime" in here.reason


@pytest.mark.parametrize(("precision", "status"), [("fp32", "float"), ("w8a32", "folded-to-float")])
def test_equal_tiny_weights_that_the_runtime_merges_are_not_missing(
    tmp_path: Path, precision: str, status: str
) -> None:
    # one input per weight: all int8 values are 127, so equal scales make equal weights
    graph = Graph(np.random.default_rng(), precision != "fp32")
    outputs = []
    for name in ("a", "b", "c"):
        weight = graph.weight(f"{name}.weight", 1, 4)
        graph.inits[f"{name}.weight"][:] = 127 if graph.int8 else 0.5
        if graph.int8 and name != "c":
            graph.inits[f"{name}.weight.scale"][:] = 0.25
        outputs.append(graph.add("MatMul", "x", weight, out=f"{name}_out"))
    graph.inits["c.weight"][0, 0] = 3
    source = graph.save(
        tmp_path / "onnx" / "full.onnx",
        {"x": (onnx.TensorProto.FLOAT, ["candidates", 1])},
        {name: ["candidates", 4] for name in outputs},
    )
    built = build_engine(backend, BuildSpec("full", source, precision), tmp_path, _silent)
    assert {w.name: w.status for w in built.weights} == dict.fromkeys(("a.weight", "b.weight", "c.weight"), status)
