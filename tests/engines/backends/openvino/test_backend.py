import dataclasses
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.backends.build import build_engine
from engines.backends.engine_spec import BuildSpec
from engines.backends.openvino import backend
from graphs.base.errors import UgsepError
from tests.export.lowering_graphs import FFN_SHAPE, ffn, item, reference

pytest.importorskip("openvino", reason="pip install 'ugsep[openvino]'")

TOKENS, WIDTH, _ = FFN_SHAPE


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng()


def _silent(message: str) -> None:
    assert message


def _rows(rng: np.random.Generator, rows: int) -> dict[str, np.ndarray]:
    return {"x": rng.standard_normal((rows, TOKENS, WIDTH)).astype(np.float32)}


def _build(tmp_path: Path, source: Path, precision: str, side: str = "full", **options: Any):
    (tmp_path / "out").mkdir(exist_ok=True)
    spec = BuildSpec(side, source, precision, options=options)  # type: ignore[arg-type]  # a Literal
    return build_engine(backend, spec, tmp_path / "out", _silent)


@pytest.mark.parametrize("kind", ["gelu", "swiglu"])
# Exact ones: summation order of K <= 72 terms of magnitude ~1; int8 activations add about 1/254 per GEMM.
@pytest.mark.parametrize(("precision", "bound"), [("fp32", 2e-5), ("w8a32", 2e-5), ("w8a8-dynamic", 0.2)])
def test_scores(tmp_path: Path, rng: np.random.Generator, kind: str, precision: str, bound: float) -> None:
    source = ffn(tmp_path / "full.onnx", rng, precision != "fp32", kind)
    built = _build(tmp_path, source, precision)
    runner = backend.load(tmp_path / "out", built)
    for rows in (1, 2, 257):
        feeds = _rows(rng, rows)
        assert np.abs(runner.infer(feeds)["click"] - reference(source, feeds)["click"]).max() < bound
    names = {"up.weight", "down.weight", "dense.weight"} | ({"gate.weight"} if kind == "swiglu" else set())
    assert {w.name for w in built.weights} == (set() if precision == "fp32" else names)
    assert {w.status for w in built.weights} <= {"fused-int8"}
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["full.bin", "full.xml"]
    assert built.bytes == sum(p.stat().st_size for p in (tmp_path / "out").iterdir())
    runner.close()
    with pytest.raises(UgsepError, match="closed"):
        runner.infer(feeds)


def test_a_precision_the_cpu_lacks_is_refused_and_one_it_has_is_what_runs(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    source = ffn(tmp_path / "full.onnx", rng, False, "gelu")
    reason = backend.probe().reason
    for precision in ("bf16", "fp16"):
        if precision.upper() in reason:
            runner = backend.load(tmp_path / "out", _build(tmp_path, source, precision))
            feeds = _rows(rng, 33)
            worst = np.abs(runner.infer(feeds)["click"] - reference(source, feeds)["click"]).max()
            assert 1e-6 < worst < 0.2  # 8 or 11 bits of mantissa, logits of 1..5: close to FP32, not equal
        else:
            with pytest.raises(UgsepError, match=f"this CPU runs .*, not the requested {precision}"):
                _build(tmp_path, source, precision)


def test_item_side_with_an_int8_table(tmp_path: Path, rng: np.random.Generator) -> None:
    source = item(tmp_path / "item.onnx", rng, True)
    built = _build(tmp_path, source, "w8a32", "item")
    assert {w.name: w.status for w in built.weights} == {"mix.weight": "fused-int8"}
    feeds = {
        "ids": rng.integers(0, 50, 9),
        "user_index": rng.integers(0, 2, 9),
        "state": rng.standard_normal((2, 16)).astype(np.float32),
    }
    got = backend.load(tmp_path / "out", built).infer(feeds)["click"]
    np.testing.assert_allclose(got, reference(source, feeds)["click"], rtol=0, atol=2e-6)


def test_infer_from_several_threads(tmp_path: Path, rng: np.random.Generator) -> None:
    runner = backend.load(tmp_path / "out", _build(tmp_path, ffn(tmp_path / "full.onnx", rng, False, "gelu"), "fp32"))
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


def test_threads_that_call_in_turn_share_one_inference_request(tmp_path: Path, rng: np.random.Generator) -> None:
    source = ffn(tmp_path / "full.onnx", rng, False, "gelu")
    runner = backend.load(tmp_path / "out", _build(tmp_path, source, "fp32"))
    made = []

    class Counted:
        def create_infer_request(self) -> Any:
            made.append(threading.get_ident())
            return compiled.create_infer_request()

    compiled, runner._compiled = runner._compiled, Counted()
    for _ in range(8):
        thread = threading.Thread(target=runner.infer, args=(_rows(rng, 3),))
        thread.start()
        thread.join()
    feeds = _rows(rng, 5)
    assert np.abs(runner.infer(feeds)["click"] - reference(source, feeds)["click"]).max() < 2e-5  # as in test_scores
    assert len(made) == 1


def test_an_engine_that_is_not_what_the_manifest_says(tmp_path: Path, rng: np.random.Generator) -> None:
    built = _build(tmp_path, ffn(tmp_path / "full.onnx", rng, False, "gelu"), "fp32")
    other = dataclasses.replace(built, inputs=(dataclasses.replace(built.inputs[0], name="z"),))
    with pytest.raises(UgsepError, match="inputs are x but the manifest says z"):
        backend.load(tmp_path / "out", other)
    with pytest.raises(UgsepError, match="this CPU would run float32"):
        backend.load(tmp_path / "out", dataclasses.replace(built, precision="bf16"))
    (tmp_path / "out" / "full.xml").write_text("<net")
    with pytest.raises(UgsepError, match="OpenVINO cannot load it") as error:
        backend.load(tmp_path / "out", built)
    assert "\n" not in str(error.value)


def test_options_are_checked(tmp_path: Path, rng: np.random.Generator) -> None:
    with pytest.raises(UgsepError, match="did you mean 'threads'"):
        _build(tmp_path, ffn(tmp_path / "full.onnx", rng, False, "gelu"), "fp32", thread=1)
