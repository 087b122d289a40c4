"""Loading a bundle with a hundred million weights takes under two seconds, including hashes."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import onnx
import pytest

from engines.backends.build import build_engine
from engines.backends.engine_spec import BuildSpec
from engines.backends.onnxruntime import backend
from engines.bundle.manifest import Engine, Manifest, write_manifest
from engines.serve.ranker import Ranker
from graphs.base.errors import UgsepError
from tests.export.lowering_graphs import Graph

TOKENS, WIDTH, HIDDEN = 8, 768, 3072  # the FFN of a 100M RankMixer: 38M weights per layer


def _graph(path: Path, side: str, layers: int) -> Path:
    g = Graph(np.random.default_rng(), True)
    kind = onnx.TensorProto.FLOAT
    if side == "user":
        rows, state = "users", "x"
        inputs = {"x": (kind, ["users", TOKENS, WIDTH])}
    else:
        rows, state = "candidates", g.add("Add", "z", g.add("Gather", "state", "user_index", axis=0))
        inputs = {
            "z": (kind, ["candidates", TOKENS, WIDTH]),
            "state": (kind, ["users", TOKENS, WIDTH]),
            "user_index": (onnx.TensorProto.INT64, ["candidates"]),
        }
    x = g.add("Transpose", state, perm=[1, 0, 2])
    for layer in range(layers):
        up = g.add("Relu", g.add("MatMul", x, g.weight(f"{layer}.up", TOKENS, WIDTH, HIDDEN)))
        x = g.add("MatMul", up, g.weight(f"{layer}.down", TOKENS, HIDDEN, WIDTH))
    if side == "user":
        g.add("Transpose", x, perm=[1, 0, 2], out="state")
        return g.save(path, inputs, {"state": [rows, TOKENS, WIDTH]}, check=False)
    back = g.add("Transpose", x, perm=[1, 0, 2])
    g.add("ReduceMean", back, g.const("axes", np.array([1, 2])), keepdims=0, out="click")
    return g.save(path, inputs, {"click": [rows]}, check=False)


@pytest.mark.slow
def test_a_bundle_of_115_million_weights(tmp_path: Path) -> None:
    bundle, engines = tmp_path / "bundle", []
    for side, layers, precision in (("user", 1, "w8a8-dynamic"), ("item", 2, "w8a32")):
        source = _graph(tmp_path / "onnx" / f"{side}.onnx", side, layers)
        (bundle / side).mkdir(parents=True)
        spec = BuildSpec(side, source, precision)  # type: ignore[arg-type]  # a Literal
        engines.append(Engine(side, build_engine(backend, spec, bundle / side, lambda message: None)))
    assert sum(e.built.bytes for e in engines) > 110e6
    write_manifest(bundle, Manifest("large", "make engines", 21, tuple(engines)))
    seconds = []
    for _ in range(4):
        started = time.perf_counter()
        ranker = Ranker.from_bundle(bundle, threads=1)
        seconds.append(time.perf_counter() - started)
        ranker.close()
    assert min(seconds) < 2, seconds  # the minimum, because other processes share the machine
    # Fast, yet every byte is checked: the last one of the larger engine matters.
    data = bundle / "item" / "item.onnx.data"
    with data.open("r+b") as stream:
        stream.seek(-1, 2)
        last = stream.read(1)
        stream.seek(-1, 2)
        stream.write(bytes([last[0] ^ 1]))
    with pytest.raises(UgsepError, match="sha256"):
        Ranker.from_bundle(bundle)
