"""Streamed graphs equal those of the in-memory build."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import safetensors.torch
import torch
from click.testing import CliRunner

from engines.build import streaming as streaming
from engines.build.graph_exports import export_graphs
from engines.build.source_model import of_model, split_source_model
from engines.build.streaming import stream
from engines.cli.main import main
from engines.recipes.recipe import Quantization, Recipe
from graphs.base.errors import UgsepError
from graphs.base.features import of_side, random_rows
from graphs.models.pretrained import load_checkpoint
from quant.policy import policy_from
from quant.schemes.schemes import Absmax
from quant.streaming import layout
from quant.weight_table import QuantTable
from quant.weights import quantize_side
from tests.engines.build.streamed_checkpoint import contents, sharded_checkpoint
from tests.quant.graph_fixtures import constants

MIXED: dict[str, Any] = {
    "tables": True,
    "weights": [
        {"glob": "item:*.down.weight*", "precision": "fp16", "reason": "test"},
        {"glob": "user:*.up.weight*", "precision": "fp32", "reason": "test"},
    ],
}
BLOCKS: dict[str, Any] = {
    "block": 12,
    "default": "fp32",
    "weights": [{"glob": "*.gate.weight*", "precision": "int8"}, {"glob": "*.down.weight", "precision": "int8"}],
}


def _ordinary(checkpoint: Path, out: Path, policy: dict[str, Any]) -> dict[str, QuantTable]:
    model = load_checkpoint(checkpoint).for_inference()
    onnx_files = export_graphs("tiny", of_model(model), split_source_model(of_model(model)), out)
    sides: tuple[Any, ...] = ("user", "item")
    return {s: quantize_side(onnx_files[s], out, scheme=Absmax(), policy=policy_from(policy)) for s in sides}


def _assert_same_files(one: Path, other: Path) -> None:
    for side in ("user", "item"):
        assert (one / f"{side}.int8.data").read_bytes() == (other / f"{side}.int8.data").read_bytes()
        for view in ("w8a32", "w8a16"):
            files = [folder / f"{side}.{view}.onnx" for folder in (one, other)]
            a, b = (onnx.load(file, load_external_data=False).graph for file in files)
            held = [constants(file) for file in files]
            assert [t.name for t in a.initializer] == [t.name for t in b.initializer]
            for name, left in held[0].items():
                right = held[1][name]
                assert (left.dtype, left.shape, left.tobytes()) == (right.dtype, right.shape, right.tobytes()), name
            assert list(a.node) == list(b.node)
            assert (list(a.input), list(a.output)) == (list(b.input), list(b.output))


@pytest.fixture
def tiny_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut every weight into several chunks, by columns too."""
    monkeypatch.setattr(layout, "CHUNK_BYTES", 12_000)


@pytest.mark.usefixtures("tiny_chunks")
@pytest.mark.parametrize(
    ("variant", "changes", "policy"),
    [
        ("tokenmixer-large", {"width": 72, "hidden": 130}, MIXED),
        # Sinkhorn is folded: computed constants
        pytest.param("unimixer", {"width": 72, "hidden": 130}, {"tables": True}, marks=pytest.mark.slow),
        pytest.param("rankmixer", {"width": 72, "hidden": 130}, {}, marks=pytest.mark.slow),
        pytest.param("zenith-pp", {"width": 72, "hidden": 60}, BLOCKS, marks=pytest.mark.slow),
    ],
    ids=["tokenmixer-mixed-policy", "unimixer", "rankmixer", "zenith-pp-blocks"],
)
def test_streamed_files_equal_those_of_an_in_memory_build(
    tmp_path: Path, variant: str, changes: dict[str, int], policy: dict[str, Any]
) -> None:
    recipe = sharded_checkpoint(tmp_path / "checkpoint", variant, **changes)
    recipe = Recipe(recipe.model, quantization=Quantization(policy=policy))
    found = stream("tiny", recipe, tmp_path / "checkpoint", tmp_path / "streamed")
    tables = _ordinary(tmp_path / "checkpoint", tmp_path / "ordinary", policy)
    _assert_same_files(tmp_path / "ordinary", tmp_path / "streamed")
    large = [r for r in found.tables["user"].rows if r.bits == 8 and r.fp32_bytes > 65536]
    assert large, "nothing was streamed: every weight is small enough to be inline"
    for side, table in tables.items():
        assert table.quantized_bytes == found.tables[side].quantized_bytes
        for a, b in zip(table.rows, found.tables[side].rows, strict=True):
            # Chunked float32 sums of squares differ from float64 by far less than 0.001 dB.
            assert b.sqnr_db == pytest.approx(a.sqnr_db, abs=1e-3)
            assert (a.weight, a.bits, a.scheme, a.reason_if_skipped) == (
                b.weight,
                b.bits,
                b.scheme,
                b.reason_if_skipped,
            )


def test_streamed_engines_score_as_the_model_does(tmp_path: Path) -> None:
    recipe = sharded_checkpoint(tmp_path / "checkpoint", "tokenmixer-large", width=72, hidden=130)
    stream("tiny", recipe, tmp_path / "checkpoint", tmp_path / "onnx")
    model = load_checkpoint(tmp_path / "checkpoint")
    generator = torch.Generator().manual_seed(5)
    user = random_rows(of_side(model.config.features, "user"), 1, generator)
    items = random_rows(of_side(model.config.features, "item"), 9, generator)
    sessions = [ort.InferenceSession(tmp_path / "onnx" / f"{s}.w8a32.onnx") for s in ("user", "item")]
    given = {k: v.numpy() for k, v in {**user, **items}.items()} | {"user_index": np.zeros(9, np.int64)}
    for session in sessions:
        names = [i.name for i in session.get_inputs()]
        outputs = session.run(None, {n: given[n] for n in names})
        given |= dict(zip([o.name for o in session.get_outputs()], outputs, strict=True))
    with torch.no_grad():
        want = model({**{k: v.expand(9, *v.shape[1:]) for k, v in user.items()}, **items})
    for task, logits in want.items():
        noise = np.mean((given[task] - logits.numpy()) ** 2)
        assert (
            10 * np.log10(np.mean(logits.numpy() ** 2) / noise) > 20
        )  # 25 dB at these widths; a misplaced weight leaves none


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
@pytest.mark.parametrize("weight", ["layers.0.mixing.user.network.gate.weight", "heads.like.logit.bias"])
def test_nan_and_infinite_weights_are_refused(tmp_path: Path, value: float, weight: str) -> None:
    recipe = sharded_checkpoint(tmp_path / "checkpoint", "tokenmixer-large", width=72, hidden=130)
    for file in (tmp_path / "checkpoint").glob("*.safetensors"):
        weights = safetensors.torch.load_file(file)
        if weight in weights:
            weights[weight].view(-1)[-1] = value
            safetensors.torch.save_file({k: v.clone() for k, v in weights.items()}, file)
    with pytest.raises(UgsepError, match=rf"weight '{weight}' has 1 NaN or infinite values"):
        stream("tiny", recipe, tmp_path / "checkpoint", tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.onnx"))


CONFIG = """
model: tokenmixer-large
config:
  {width: 72, hidden: 130, user_tokens: 4, item_tokens: 2, features: [
    {name: uid, side: user, kind: id, vocab: 11}, {name: iid, side: item, kind: id, vocab: 13},
    {name: cross, side: item, kind: dense, width: 6}]}
"""


def test_random_checkpoints_are_the_same_every_time_and_stream_from_the_command_line(tmp_path: Path) -> None:
    recipe, run = tmp_path / "tiny.yaml", CliRunner()
    recipe.write_text(CONFIG)
    for folder in ("a", "b"):
        out = run.invoke(main, ["random-checkpoint", str(recipe), "--out", str(tmp_path / folder), "--shard-mb", "1"])
        assert out.exit_code == 0, out.output
    assert len(list((tmp_path / "a").glob("*.safetensors"))) > 1
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert {p.stat().st_mode for p in (tmp_path / "a").iterdir()} == {recipe.stat().st_mode}
    other = run.invoke(main, ["random-checkpoint", str(recipe), "--out", str(tmp_path / "c"), "--seed", "1"])
    assert other.exit_code == 0
    one, two = load_checkpoint(tmp_path / "a").state_dict(), load_checkpoint(tmp_path / "c").state_dict()
    assert not any(torch.equal(one[n], two[n]) for n in one if one[n].dim() > 1 or n.endswith("bias"))
    again = run.invoke(main, ["random-checkpoint", str(recipe), "--out", str(tmp_path / "a")])
    assert again.exit_code == 2
    assert "already holds a checkpoint" in again.output
    args = ["stream", str(recipe), "--checkpoint", str(tmp_path / "a"), "--out", str(tmp_path / "onnx"), "--json"]
    done = run.invoke(main, args)
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    written = sum(p.stat().st_size for p in (tmp_path / "onnx").iterdir() if p.name != "streamed.json")
    assert facts["output_bytes"] == written
    assert facts["int8_bytes"] < facts["quantized_bytes"] < facts["fp32_bytes"]
    assert facts["resumed"] == 0


@pytest.mark.slow
def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    """The benchmark at 20M: the memory that quantizing adds is bounded by its buffers and the largest weight."""
    command = [sys.executable, "-m", "benchmarks.streaming", "--size", "20m", "--folder", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "memory added while quantizing" in done.stdout
    measured = json.loads((tmp_path / "20m" / "memory.json").read_text())
    assert measured["peak_bytes"] > measured["traced_bytes"] > 100e6
    assert len(measured["curve"]) > 20
    assert {"split", "export", "quantize user", "quantize item"} <= set(measured["steps"])
    assert "<svg" in (tmp_path / "20m" / "memory.html").read_text()
