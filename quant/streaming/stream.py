"""Quantize graphs whose weights are on disk, chunk by chunk, straight into the files that engines read.

The result equals that of ``quantize_side`` with ``absmax``; the shared file of blobs is the same byte for byte.
Finished weights are journalled with the checksum of their bytes in ``<out>/.streaming``, so a killed run resumes. The
weights of a graph are encoded in the background while the next graph is made and the previous one is written.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from export.streamed import StreamedGraph
from export.weights.lazy_weights import Weights
from graphs.base.config import parse
from graphs.base.errors import UgsepError
from graphs.base.json_text import read_json
from graphs.base.progress import ProgressCallback, silent
from graphs.base.regular_file import is_regular_file
from quant.graph.files import publish
from quant.graph.gemms import name_of
from quant.policy import Policy, check_rules
from quant.schemes.schemes import Absmax, SchemeConfig, scheme_name
from quant.streaming.encode import EncodedSide, encode_side
from quant.streaming.job import StreamJob, job_of, run_key
from quant.streaming.views import write_side
from quant.weight_table import QuantTable, table_of

STAGE = ".streaming"
DONE = "streamed.json"


@dataclass(frozen=True)
class Streamed:
    """The table of every side, the bytes written, and the number of weights an earlier run had finished."""

    tables: Mapping[str, QuantTable]
    output_bytes: int
    resumed: int
    unchanged: bool = False


def stream_graphs(
    graphs: Iterable[StreamedGraph],
    weights: Weights,
    out: Path,
    *,
    source: str,
    scheme: SchemeConfig | None = None,
    policy: Policy | None = None,
    threads: int = 2,
    progress: ProgressCallback = silent,
) -> Streamed:
    """Write both typed views and the shared int8 file of every graph into ``out``.

    ``graphs`` may be a generator: the weights of the first graph are encoded while the second is made. Nothing is
    published before all are written. Memory: per worker a few times ``CHUNK_BYTES``, plus the largest float weight of
    a graph. ``source`` identifies the contents of the checkpoint; a killed run of the same source, graphs, scheme and
    policy is resumed.

    Raises:
        UgsepError: a scheme that needs calibration, a policy rule that matches no weight, NaN or infinite weights,
            no space left (finished weights are kept), a folder that cannot be written; and what ``graphs`` raises.
    """
    scheme, policy = scheme or Absmax(), policy or Policy()
    if not isinstance(scheme, Absmax):
        raise UgsepError(
            f"scheme '{scheme_name(scheme)}' needs calibration, which runs the FP32 graph; stream with 'absmax'"
        )
    made: Iterable[StreamJob] = (job_of(graph, weights, source, scheme, policy) for graph in graphs)
    if is_regular_file(out / DONE, _STREAM_AGAIN):  # all graphs are needed to tell whether anything is left to do
        made = list(made)
        _check_rules(policy, made)
        if (done := _finished(out, run_key(made, policy))) is not None:
            shutil.rmtree(out / STAGE, ignore_errors=True)  # of a run killed after its last file was in place
            return done
    stage = out / STAGE
    jobs: list[StreamJob] = []
    with _background() as (background, stop):
        encoded: list[Future[EncodedSide]] = []
        for job in made:
            jobs.append(job)
            with _disk(out):
                stage.mkdir(parents=True, exist_ok=True)
                _check_space(out, stage, jobs)
                encoded.append(background.submit(encode_side, job, out, stage, threads, stop, progress))
        _check_rules(policy, jobs)
        with _disk(out):
            tables = {
                job.side: write_side(job, side.result(), stage) for job, side in zip(jobs, encoded, strict=True)
            }
    key = run_key(jobs, policy)
    with _disk(out):
        files = [stage / name for table in tables.values() for name in table.files]
        sizes = {file.name: file.stat().st_size for file in files}
        publish(files, out)
        partial = out / f"{DONE}.partial"
        partial.write_text(json.dumps({"key": key, "files": sizes}, indent=1, sort_keys=True) + "\n")
        os.replace(partial, out / DONE)
        shutil.rmtree(stage)
    return Streamed(tables, sum(sizes.values()), sum(side.result().resumed for side in encoded))


@contextmanager
def _background() -> Iterator[tuple[ThreadPoolExecutor, Event]]:
    """Yield one background thread and the event that stops its work; the thread has ended when the block is left."""
    stop = Event()
    with ThreadPoolExecutor(1, "quant stream") as background:
        try:
            yield background, stop
        finally:
            stop.set()
            background.shutdown(wait=False, cancel_futures=True)


def _check_rules(policy: Policy, jobs: Sequence[StreamJob]) -> None:
    check_rules(policy, ((job.side, w.name) for job in jobs for w in job.plans))


_STREAM_AGAIN = "delete it and stream again"


@dataclass(frozen=True)
class _Done:
    """The content of streamed.json: the key of the run and the sizes of its files."""

    key: str
    files: Mapping[str, int]


def _finished(out: Path, key: str) -> Streamed | None:
    """Return the result of an earlier run with the same key, if all of its files are there."""
    location = f"'{out / DONE}'"
    done = parse(_Done, read_json((out / DONE).read_bytes(), location, _STREAM_AGAIN), location)
    files = done.files
    if done.key != key or any(not (out / n).is_file() or (out / n).stat().st_size != s for n, s in files.items()):
        return None
    found = {n.split(".")[0]: table_of(out / n) for n in files if n.endswith(".w8a32.onnx")}
    tables = {side: table for side, table in found.items() if table is not None}
    return Streamed(tables, sum(files.values()), 0, unchanged=True)


def _check_space(out: Path, stage: Path, jobs: Sequence[StreamJob]) -> None:
    need = sum(j.blob_bytes + 4 * j.scale_bytes + 10 * sum(j.constants[name_of(v)].elements for v in j.floats())
               for j in jobs)  # fmt: skip
    free = shutil.disk_usage(out).free  # read first: space reserved meanwhile may count twice
    there = sum(f.stat().st_blocks * 512 for f in stage.iterdir())
    if free + there < need:
        raise UgsepError(
            f"'{out}' needs {need / 1e9:.1f} GB, but only {free / 1e9:.1f} GB are free; free space or pass --out"
        )


@contextmanager
def _disk(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UgsepError(
            f"cannot write to '{out}' ({error.strerror}); free space or give another folder, then start again: "
            "finished weights are kept"
        ) from error
