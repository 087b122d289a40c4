"""Streamed graphs equal those of the in-memory build, and a killed run resumes."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
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
from export.streamed import StreamedGraph
from export.weights.lazy_weights import open_weights
from graphs.base.errors import UgsepError
from graphs.base.features import of_side, random_rows
from graphs.base.progress import Progress
from graphs.checkpoint.files import stored_weights
from graphs.models.pretrained import load_checkpoint, meta_model
from quant.policy import policy_from
from quant.schemes.schemes import Absmax, Mse
from quant.streaming import encode as encoding
from quant.streaming import layout
from quant.streaming import stream as quant_stream
from quant.weight_table import QuantTable, table_of
from quant.weights import quantize_side
from tests.graphs.checkpoint.test_sharded_checkpoint import shard
from tests.graphs.model_laws import make_config, make_model
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


def _checkpoint(folder: Path, variant: str, **changes: object) -> Recipe:
    """Write a sharded BF16 checkpoint with weights above and below the external data threshold; return its recipe."""
    model = make_model(make_config(variant, "2:1", **changes))
    model.save_pretrained(folder)
    file = folder / "model.safetensors"
    weights = {k: v.bfloat16() for k, v in safetensors.torch.load_file(file).items()}
    safetensors.torch.save_file(weights, file)
    shard(folder, 3)
    return Recipe(model=model.architecture())


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
    recipe = _checkpoint(tmp_path / "checkpoint", variant, **changes)
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
    recipe = _checkpoint(tmp_path / "checkpoint", "tokenmixer-large", width=72, hidden=130)
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


class _Killed(BaseException):
    """Stands in for a signal: nothing in the program catches it."""


def _killer(step: str, done: int) -> Any:
    def progress(event: Progress) -> None:
        if event.step == step and event.done == done:
            raise _Killed

    return progress


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Recipe, Path]:
    """A checkpoint, its recipe, and its graphs from an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    recipe = _checkpoint(folder / "checkpoint", "tokenmixer-large", width=72, hidden=130)
    stream("tiny", recipe, folder / "checkpoint", folder / "onnx")
    return folder / "checkpoint", recipe, folder / "onnx"


@pytest.fixture
def traced_once(whole: tuple[Path, Recipe, Path], monkeypatch: pytest.MonkeyPatch, traced: Any) -> None:
    """Return copies of one trace of the model, because the tests concern later steps."""

    def copies(*_: Any) -> list[StreamedGraph]:
        return [StreamedGraph(onnx.ModelProto.FromString(m), c) for m, c in traced]

    monkeypatch.setattr(streaming, "weightless_graphs", copies)


@pytest.fixture(scope="module")
def traced(whole: tuple[Path, Recipe, Path]) -> list[tuple[bytes, Any]]:
    checkpoint, _, _ = whole
    with open_weights(stored_weights(checkpoint)) as weights:
        graphs = list(streaming.weightless_graphs("tiny", meta_model(checkpoint), weights))
    return [(g.model.SerializeToString(), g.constants) for g in graphs]


def _files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.mark.usefixtures("traced_once")
@pytest.mark.parametrize(("step", "done"), [("quantize user", 3), ("quantize item", 2)])
def test_a_killed_run_goes_on_where_it_was(
    whole: tuple[Path, Recipe, Path], tmp_path: Path, step: str, done: int
) -> None:
    checkpoint, recipe, want = whole
    with pytest.raises(_Killed):
        stream("tiny", recipe, checkpoint, tmp_path, progress=_killer(step, done))
    assert not list(tmp_path.glob("*.onnx")), "a graph was written before its data was complete"
    found = stream("tiny", recipe, checkpoint, tmp_path)
    users = sum(r.bits < 32 for r in found.tables["user"].rows)
    assert found.resumed == done - 1 + (users if step == "quantize item" else 0)
    assert _files(tmp_path) == _files(want)


@pytest.mark.usefixtures("traced_once")
def test_a_finished_weight_whose_bytes_changed_is_done_again(
    whole: tuple[Path, Recipe, Path], tmp_path: Path
) -> None:
    checkpoint, recipe, want = whole
    with pytest.raises(_Killed):
        stream("tiny", recipe, checkpoint, tmp_path, progress=_killer("quantize item", 4))
    blob = tmp_path / quant_stream.STAGE / "item.int8.data"
    damaged = bytearray(blob.read_bytes())
    damaged[0] ^= 1
    blob.write_bytes(damaged)
    found = stream("tiny", recipe, checkpoint, tmp_path)
    assert found.resumed == sum(r.bits < 32 for r in found.tables["user"].rows) + 2  # 3 finished, one damaged
    assert _files(tmp_path) == _files(want)


@pytest.mark.usefixtures("traced_once")
def test_a_run_killed_while_files_are_moved_goes_on(
    whole: tuple[Path, Recipe, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, recipe, want = whole

    def half(files: Any, folder: Path) -> None:
        for file in sorted(files)[:1]:
            file.rename(folder / file.name)
        raise _Killed

    with monkeypatch.context() as patch:
        patch.setattr(quant_stream, "publish", half)
        with pytest.raises(_Killed):
            stream("tiny", recipe, checkpoint, tmp_path)
    assert (tmp_path / "item.int8.data").exists()
    found = stream("tiny", recipe, checkpoint, tmp_path)
    assert found.resumed == sum(r.bits < 32 for t in found.tables.values() for r in t.rows)
    assert _files(tmp_path) == _files(want)


@pytest.mark.usefixtures("traced_once")
def test_a_journal_cut_short_loses_only_its_last_line(whole: tuple[Path, Recipe, Path], tmp_path: Path) -> None:
    checkpoint, recipe, want = whole
    with pytest.raises(_Killed):
        stream("tiny", recipe, checkpoint, tmp_path, progress=_killer("quantize user", 5))
    journal = tmp_path / quant_stream.STAGE / "user.journal"
    journal.write_text(journal.read_text()[:-20])
    assert stream("tiny", recipe, checkpoint, tmp_path).resumed == 3
    assert _files(tmp_path) == _files(want)


@pytest.mark.usefixtures("traced_once")
def test_another_checkpoint_or_policy_starts_anew(whole: tuple[Path, Recipe, Path], tmp_path: Path) -> None:
    checkpoint, recipe, _ = whole
    with pytest.raises(_Killed):
        stream("tiny", recipe, checkpoint, tmp_path, progress=_killer("quantize user", 5))
    other = Recipe(recipe.model, quantization=Quantization(policy={"tables": True}))
    assert stream("tiny", other, checkpoint, tmp_path).resumed == 0


@pytest.mark.usefixtures("traced_once")
def test_a_shard_changed_behind_its_size_and_time_starts_anew(
    whole: tuple[Path, Recipe, Path], tmp_path: Path
) -> None:
    original, recipe, want = whole
    checkpoint, out = tmp_path / "checkpoint", tmp_path / "onnx"
    shutil.copytree(original, checkpoint)
    with pytest.raises(_Killed):
        stream("tiny", recipe, checkpoint, out, progress=_killer("quantize user", 5))
    shard_file = sorted(checkpoint.glob("*.safetensors"))[-1]
    before = shard_file.stat()
    changed = bytearray(shard_file.read_bytes())
    changed[-2] ^= 1
    shard_file.write_bytes(changed)
    os.utime(shard_file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert shard_file.stat().st_size == before.st_size
    assert stream("tiny", recipe, checkpoint, out).resumed == 0
    assert _files(out) != _files(want)


@pytest.mark.usefixtures("traced_once")
def test_a_finished_run_is_not_repeated(whole: tuple[Path, Recipe, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint, recipe, want = whole
    before = _files(want)
    monkeypatch.setattr(quant_stream, "encode_side", None)  # would fail if called
    found = stream("tiny", recipe, checkpoint, want)
    assert found.unchanged
    assert all(found.tables[side].rows for side in ("user", "item"))
    assert found.output_bytes == sum(len(v) for n, v in before.items() if n != "streamed.json")
    assert _files(want) == before


@pytest.mark.usefixtures("traced_once")
def test_the_reason_is_one_line(whole: tuple[Path, Recipe, Path], tmp_path: Path) -> None:
    checkpoint, recipe, _ = whole
    cases: list[tuple[Recipe, Any, str]] = [
        (recipe, Mse(), "scheme 'mse' needs calibration"),
        (Recipe(recipe.model, quantization=Quantization(policy={"weights": [{"glob": "x*", "precision": "fp32"}]})),
         Absmax(), r"policy 'x\*' matches no weight"),
        (Recipe("zenith"), Absmax(), "holds a 'tokenmixer-large', but the recipe is for 'zenith'"),
    ]  # fmt: skip
    for case, scheme, message in cases:
        with pytest.raises(UgsepError, match=message):
            stream("tiny", case, checkpoint, tmp_path / "out", scheme=scheme)


@pytest.mark.usefixtures("traced_once")
def test_a_rule_that_matches_nothing_publishes_nothing_and_loses_nothing(
    whole: tuple[Path, Recipe, Path], tmp_path: Path
) -> None:
    checkpoint, recipe, want = whole
    with pytest.raises(_Killed):
        stream("tiny", recipe, checkpoint, tmp_path, progress=_killer("quantize item", 3))
    mistyped: dict[str, Any] = {"weights": [{"glob": "item:x*", "precision": "fp32"}]}
    wrong = Recipe(recipe.model, quantization=Quantization(policy=mistyped))
    with pytest.raises(UgsepError, match=r"policy 'item:x\*' matches no weight"):
        stream("tiny", wrong, checkpoint, tmp_path)
    assert _pool_threads() == []
    assert [p.name for p in tmp_path.iterdir()] == [quant_stream.STAGE]
    found = stream("tiny", recipe, checkpoint, tmp_path)
    assert found.resumed >= sum(r.bits < 32 for r in found.tables["user"].rows) + 2
    assert _files(tmp_path) == _files(want)


def test_a_second_graph_that_fails_stops_the_first_whose_journal_stays(
    whole: tuple[Path, Recipe, Path], traced: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, recipe, want = whole
    graphs = [StreamedGraph(onnx.ModelProto.FromString(m), c) for m, c in traced]
    begun, stop, encode = threading.Event(), threading.Event(), encoding._encode_chunk
    table = table_of(want / "user.w8a32.onnx")
    assert table is not None
    users = [r.weight for r in table.rows if r.bits < 32]

    def fails(*_: Any) -> Iterator[StreamedGraph]:
        yield graphs[0]
        assert begun.wait(60)
        raise UgsepError("the exporter refuses the graph")

    def slow(slot: Any, *rest: Any) -> Any:
        """Hold back all weights except the first three and the fourth, whose start ends the third."""
        assert slot.name in users[:4] or stop.wait(60)
        return encode(slot, *rest)

    def progress(event: Progress) -> None:
        if event.step == "quantize user" and event.done == 3:
            begun.set()

    with monkeypatch.context() as patch:
        patch.setattr(streaming, "weightless_graphs", fails)
        patch.setattr(quant_stream, "Event", lambda: stop)
        patch.setattr(encoding, "_encode_chunk", slow)
        with pytest.raises(UgsepError, match="the exporter refuses the graph"):
            stream("tiny", recipe, checkpoint, tmp_path, progress=progress)
    assert _pool_threads() == []
    assert [p.name for p in tmp_path.iterdir()] == [quant_stream.STAGE]
    monkeypatch.setattr(streaming, "weightless_graphs", lambda *_: graphs)
    found = stream("tiny", recipe, checkpoint, tmp_path)
    assert 3 <= found.resumed < len(users)
    assert _files(tmp_path) == _files(want)


def _pool_threads() -> list[str]:
    """The names of the threads that streaming leaves; those of other tests do not count."""
    return [t.name for t in threading.enumerate() if t.name.startswith(("quant encode", "quant stream"))]


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
@pytest.mark.parametrize("weight", ["layers.0.mixing.user.network.gate.weight", "heads.like.logit.bias"])
def test_nan_and_infinite_weights_are_refused(tmp_path: Path, value: float, weight: str) -> None:
    recipe = _checkpoint(tmp_path / "checkpoint", "tokenmixer-large", width=72, hidden=130)
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
    assert _files(tmp_path / "a") == _files(tmp_path / "b")
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
def test_no_space_left_is_one_line_and_loses_nothing(whole: tuple[Path, Recipe, Path], tmp_path: Path) -> None:
    checkpoint, recipe, want = whole
    path = tmp_path / "tiny.yaml"
    path.write_text(f"model: {recipe.model}\n")
    command = [sys.executable, "-c", "from engines.cli.main import main; main()", "stream", str(path), "--checkpoint",
               str(checkpoint), "--out", str(tmp_path / "onnx")]  # fmt: skip
    limit = (want / "user.int8.data").stat().st_size // 2

    def no_larger_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    full = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=no_larger_files)
    assert full.returncode == 2
    assert "cannot write to" in full.stderr.splitlines()[-1]
    assert "Traceback" not in full.stderr
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "onnx" / "user.int8.data").read_bytes() == (want / "user.int8.data").read_bytes()


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
