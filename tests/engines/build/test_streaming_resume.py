"""A streamed build that was interrupted resumes; what changed since is done again, and nothing is half-written."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest

from engines.build import streaming as streaming
from engines.build.streaming import stream
from engines.recipes.recipe import Quantization, Recipe
from export.streamed import StreamedGraph
from export.weights.lazy_weights import open_weights
from graphs.base.errors import UgsepError
from graphs.base.progress import Progress
from graphs.checkpoint.files import stored_weights
from graphs.models.pretrained import meta_model
from quant.schemes.schemes import Absmax, Mse
from quant.streaming import encode as encoding
from quant.streaming import stream as quant_stream
from quant.weight_table import table_of
from tests.engines.build.streamed_checkpoint import contents, sharded_checkpoint


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
    recipe = sharded_checkpoint(folder / "checkpoint", "tokenmixer-large", width=72, hidden=130)
    stream("tiny", recipe, folder / "checkpoint", folder / "onnx")
    return folder / "checkpoint", recipe, folder / "onnx"


@pytest.fixture
def traced_once(whole: tuple[Path, Recipe, Path], monkeypatch: pytest.MonkeyPatch, traced: Any) -> None:
    """Return copies of one trace of the model, because the tests concern later steps."""

    def copies(*_: Any) -> list[StreamedGraph]:
        return [StreamedGraph(onnx.ModelProto.FromString(m), c) for m, c in traced]

    monkeypatch.setattr(streaming, "lazy_graphs", copies)


@pytest.fixture(scope="module")
def traced(whole: tuple[Path, Recipe, Path]) -> list[tuple[bytes, Any]]:
    checkpoint, _, _ = whole
    with open_weights(stored_weights(checkpoint)) as weights:
        graphs = list(streaming.lazy_graphs("tiny", meta_model(checkpoint), weights))
    return [(g.model.SerializeToString(), g.constants) for g in graphs]


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
    assert contents(tmp_path) == contents(want)


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
    assert contents(tmp_path) == contents(want)


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
    assert contents(tmp_path) == contents(want)


@pytest.mark.usefixtures("traced_once")
def test_a_journal_cut_short_loses_only_its_last_line(whole: tuple[Path, Recipe, Path], tmp_path: Path) -> None:
    checkpoint, recipe, want = whole
    with pytest.raises(_Killed):
        stream("tiny", recipe, checkpoint, tmp_path, progress=_killer("quantize user", 5))
    journal = tmp_path / quant_stream.STAGE / "user.journal"
    journal.write_text(journal.read_text()[:-20])
    assert stream("tiny", recipe, checkpoint, tmp_path).resumed == 3
    assert contents(tmp_path) == contents(want)


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
    assert contents(out) != contents(want)


@pytest.mark.usefixtures("traced_once")
def test_a_finished_run_is_not_repeated(whole: tuple[Path, Recipe, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint, recipe, want = whole
    before = contents(want)
    monkeypatch.setattr(quant_stream, "encode_side", None)  # would fail if called
    (want / quant_stream.STAGE).mkdir()  # of a run that was killed when all was in place but this was not yet gone
    found = stream("tiny", recipe, checkpoint, want)
    assert found.unchanged
    assert all(found.tables[side].rows for side in ("user", "item"))
    assert found.output_bytes == sum(len(v) for n, v in before.items() if n != "streamed.json")
    assert contents(want) == before


@pytest.mark.usefixtures("traced_once")
@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "not valid JSON"), ("[]", "expected a mapping"), ('{"key": 1, "files": {}}', "key is 1")],
)
def test_a_damaged_record_of_a_finished_run_is_named(
    whole: tuple[Path, Recipe, Path], tmp_path: Path, text: str, message: str
) -> None:
    checkpoint, recipe, _ = whole
    (tmp_path / "streamed.json").write_text(text)
    with pytest.raises(UgsepError, match=f"streamed.json'.*{message}"):
        stream("tiny", recipe, checkpoint, tmp_path)


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
    assert contents(tmp_path) == contents(want)


def test_a_second_graph_that_fails_stops_the_first_whose_journal_stays(
    whole: tuple[Path, Recipe, Path], traced: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, recipe, want = whole
    graphs = [StreamedGraph(onnx.ModelProto.FromString(m), c) for m, c in traced]
    begun, stop, encode = threading.Event(), threading.Event(), encoding.encode_chunk
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
        patch.setattr(streaming, "lazy_graphs", fails)
        patch.setattr(quant_stream, "Event", lambda: stop)
        patch.setattr(encoding, "encode_chunk", slow)
        with pytest.raises(UgsepError, match="the exporter refuses the graph"):
            stream("tiny", recipe, checkpoint, tmp_path, progress=progress)
    assert _pool_threads() == []
    assert [p.name for p in tmp_path.iterdir()] == [quant_stream.STAGE]
    monkeypatch.setattr(streaming, "lazy_graphs", lambda *_: graphs)
    found = stream("tiny", recipe, checkpoint, tmp_path)
    assert 3 <= found.resumed < len(users)
    assert contents(tmp_path) == contents(want)


def _pool_threads() -> list[str]:
    """The names of the threads that streaming leaves; those of other tests do not count."""
    return [t.name for t in threading.enumerate() if t.name.startswith(("quant encode", "quant stream"))]


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
