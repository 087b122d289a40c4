"""Quantize graphs whose weights are on disk, piece by piece, straight into the files that engines read.

The result is that of ``quantize_side`` with ``absmax``, byte for byte in the shared file of blobs. Finished weights
are journalled with the checksum of their bytes in ``<out>/.streaming``: a run that was killed goes on where it was.
The weights of a graph are encoded in the background while the next graph is made and the one before is written.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from threading import Event
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor

from export.io import check_file
from export.metadata import keep_float_patterns, side_of
from export.streamed import StreamedGraph
from export.weights.direct_io import BLOCK, aligned_room
from export.weights.lazy_weights import Box, Constant, Weights
from graphs.base.errors import UgsepError
from graphs.base.progress import Progress, ProgressCallback, silent
from quant.graph.files import aligned, append, publish
from quant.graph.gemms import Weight, graph_of, name_of, tensor_of, weights_of
from quant.graph.rewrite import Encoded, encode_weights
from quant.policy import Policy, check_rules, policy_document
from quant.schemes import numerics
from quant.schemes.schemes import Absmax, SchemeConfig, scheme_name
from quant.streaming.chunks import Piece, quantize_columns, quantize_rows, to_fp16
from quant.streaming.files import SideFiles, joined_digest, opened, reserve, unit_digest
from quant.streaming.journal import Journal, read_journal
from quant.streaming.layout import UNIT_BYTES, Place, Source, place_weights, source_of
from quant.weight_plan import WeightPlan, plan_of
from quant.weight_table import QuantRow, QuantTable, float_row, table_of
from quant.weights import write_views

STAGE = ".streaming"
DONE = "streamed.json"
#: Workers beside the threads that quantize: so many wait for the disk, to read or to write.
WAITING = 2
#: A worker's room: the values of a unit, and after them what is read of it, in at most 4 bytes each and whole blocks.
_VALUES_BYTES = aligned(UNIT_BYTES // 4, UNIT_BYTES)
_ROOM_BYTES = _VALUES_BYTES + UNIT_BYTES + 2 * BLOCK


@dataclass(frozen=True)
class Streamed:
    """The table of every side, the bytes that were written, and how many weights an earlier run had finished."""

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

    ``graphs`` may make one after the other: the weights of the first are encoded while the second is made. Nothing is
    published before all are written. Memory: per worker a few times ``UNIT_BYTES``, and the largest float weight of a
    graph once. ``source`` names the contents of the checkpoint; a run of the same source, graphs, scheme and policy
    that was killed is taken up.

    Raises:
        UgsepError: a scheme that needs calibration, a policy rule that matches no weight, NaN or infinite weights,
            no space left (what is finished stays), or a folder that cannot be written; and what ``graphs`` raises.
    """
    scheme, policy = scheme or Absmax(), policy or Policy()
    if not isinstance(scheme, Absmax):
        raise UgsepError(
            f"scheme '{scheme_name(scheme)}' needs calibration, which runs the FP32 graph; stream with 'absmax'"
        )
    made: Iterable[_Job] = (_job(graph, weights, source, scheme, policy) for graph in graphs)
    if (out / DONE).is_file():  # perhaps there is nothing to do, which takes all graphs to say
        made = list(made)
        _check_rules(policy, made)
        if (done := _finished(out, _key(made, policy))) is not None:
            return done
    stage = out / STAGE
    jobs: list[_Job] = []
    with _background() as (background, stop):
        encoded: list[Future[_SideEncoded]] = []
        for job in made:
            jobs.append(job)
            with _disk(out):
                stage.mkdir(parents=True, exist_ok=True)
                _check_space(out, stage, jobs)
                encoded.append(background.submit(_encode_side, job, out, stage, threads, stop, progress))
        _check_rules(policy, jobs)
        with _disk(out):
            tables = {
                job.side: _write_side(job, side.result(), stage) for job, side in zip(jobs, encoded, strict=True)
            }
    key = _key(jobs, policy)
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
    """Give one thread and the event that stops its work; whatever ends the block, the thread has ended after it."""
    stop = Event()
    with ThreadPoolExecutor(1) as background:
        try:
            yield background, stop
        finally:
            stop.set()
            background.shutdown(wait=False, cancel_futures=True)


@contextmanager
def _stopping(stop: Event) -> Iterator[None]:
    """Stop all work in the background if the block fails; the block is not begun where it is stopped already."""
    if stop.is_set():
        raise CancelledError
    try:
        yield
    except BaseException:
        stop.set()
        raise


@dataclass(frozen=True)
class _Job:
    """One graph: what becomes of its weights, and where they go."""

    side: str
    key: str
    model: ir.Model
    constants: Mapping[str, Constant]
    weights: Weights
    scheme: SchemeConfig
    policy: Policy
    plans: Mapping[Weight, WeightPlan]
    places: tuple[Place, ...]
    blob_bytes: int
    scale_bytes: int

    @property
    def blob(self) -> str:
        """Name of the file of int8 and FP16 constants that both views share."""
        return f"{self.side}.int8.data"

    def floats(self) -> list[ir.Value]:
        """Return the large initializers that stay float."""
        placed = {place.name for place in self.places}
        return [v for n, v in self.model.graph.initializers.items() if n in self.constants and n not in placed]


def _job(graph: StreamedGraph, weights: Weights, source: str, scheme: SchemeConfig, policy: Policy) -> _Job:
    model = graph_of(graph.model)
    side, keep = side_of(model, Path("streamed.onnx")), keep_float_patterns(model)
    plans = {w: plan_of(w, side, policy, keep) for w in weights_of(model)}
    places, *sizes = place_weights({w: plan.bits for w, plan in plans.items() if plan.bits < 32}, policy.block)
    digest = hashlib.sha256(graph.model.SerializeToString(deterministic=True)).hexdigest()
    # Of the policy what it makes of this side's weights: a rule for the other side leaves their bytes as they are.
    planned = [(p.name, p.bits, p.block) for p in places]
    key = _hash([source, digest, scheme_name(scheme), asdict(scheme), planned, UNIT_BYTES])
    return _Job(side, key, model, graph.constants, weights, scheme, policy, plans, places, *sizes)


def _check_rules(policy: Policy, jobs: Sequence[_Job]) -> None:
    check_rules(policy, ((job.side, w.name) for job in jobs for w in job.plans))


@dataclass(frozen=True)
class _SideEncoded:
    """A side whose weights are all in its files: the journal's facts and the new initializers by name of weight."""

    facts: Mapping[str, Mapping[str, Any]]
    initializers: Mapping[str, Encoded]
    resumed: int


def _encode_side(
    job: _Job, out: Path, stage: Path, threads: int, stop: Event, progress: ProgressCallback
) -> _SideEncoded:
    blob, scales = stage / job.blob, stage / f"{job.side}.scales"
    journal_path = stage / f"{job.side}.journal"
    with _stopping(stop):
        entries = read_journal(journal_path, job.key)
        if entries and not blob.exists() and (out / job.blob).exists():
            os.replace(out / job.blob, blob)  # killed while the files were moved to their place
        with opened(blob, scales) as files:
            done = {
                p.name: entries[p.name] for p in job.places if p.name in entries and files.holds(p, entries[p.name])
            }
            reserve(files.data, job.blob_bytes)
            os.truncate(files.scale_data, job.scale_bytes)
            journal = Journal(journal_path, job.key, done)
            todo = [p for p in job.places if p.name not in done]
            with closing(journal), closing(_encode_all(todo, job, files, threads, stop, progress)) as finished:
                for place, facts in finished:
                    journal.finished(place.name, **facts)
                    done[place.name] = facts
            initializers = {p.name: files.encoded(p, job.blob) for p in job.places}
    return _SideEncoded(done, initializers, len(job.places) - len(todo))


def _write_side(job: _Job, encoded: _SideEncoded, stage: Path) -> QuantTable:
    """Write the views of an encoded side, checked, into ``stage``."""
    _place_floats(job, stage)
    rows = tuple(_row(job, weight, encoded.facts.get(weight.name, {})) for weight in job.plans)
    table = QuantTable(job.side, scheme_name(job.scheme), "", rows)
    encode_weights(job.model, encoded.initializers)
    write_views(job.model, stage, job.side, job.blob, job.policy, table)
    views = [f"{job.side}.{view}.onnx" for view in ("w8a32", "w8a16")]
    for view in views:
        check_file(stage / view)
    written = [name + end for name in views for end in ("", ".data")]
    present = tuple(n for n in (job.blob, *written) if (stage / n).exists() and (n != job.blob or job.places))
    return replace(table, files=present)


def _encode_all(
    places: Sequence[Place], job: _Job, files: SideFiles, threads: int, stop: Event, progress: ProgressCallback
) -> Generator[tuple[Place, dict[str, Any]]]:
    """Encode the weights, several units at a time, and give them out in order as they are finished."""
    sources = {p.name: source_of(job.model.graph.initializers[p.name], job.constants, job.weights) for p in places}
    units = [(place, box) for place in places for box in place.units()]
    workers = threads + WAITING
    rooms: SimpleQueue[Tensor] = SimpleQueue()
    for _ in range(workers):
        rooms.put(aligned_room(_ROOM_BYTES))

    def work(unit: tuple[Place, Box]) -> tuple[int, float, float]:
        if stop.is_set():
            raise CancelledError
        place, box = unit
        room = rooms.get()
        try:
            piece = _encode(place, box, sources[place.name], room)
            files.write(place, box, piece)
            return unit_digest(piece.values, piece.scale), piece.signal, piece.noise
        finally:
            rooms.put(room)

    progress(Progress(f"quantize {job.side}", 0, len(places)))
    pool = ThreadPoolExecutor(workers)
    try:
        results = zip(units, pool.map(work, units), strict=True)
        for number, (name, group) in enumerate(itertools.groupby(results, key=lambda r: r[0][0].name)):
            place, found = places[number], [result for _, result in group]
            assert place.name == name
            digest = joined_digest(d for d, _, _ in found)
            facts = {"signal": sum(s for _, s, _ in found), "noise": sum(n for _, _, n in found)}
            progress(Progress(f"quantize {job.side}", number + 1, len(places), name))
            yield place, {"crc32": digest, **facts}
    finally:
        pool.shutdown(cancel_futures=True)


def _encode(place: Place, box: Box, source: Source, room: Tensor) -> Piece:
    values = source.read(box, room[_VALUES_BYTES:])
    written = room[:_VALUES_BYTES].view(torch.int8) if values.numel() <= _VALUES_BYTES else None
    piece: Piece | None
    if place.bits == 16:
        piece = to_fp16(values)
    elif place.weight.kind == "table":
        piece = quantize_rows(values, written)
    else:
        piece = quantize_columns(values.flatten(0, -2), place.block, written)
    if piece is None:
        source.refuse(values)
        raise UgsepError(f"weight '{place.name}' exceeds the FP16 range; give it int8 or fp32 in the policy")
    return piece


def _place_floats(job: _Job, stage: Path) -> None:
    """Write the large weights that stay float as float32 to a scratch file, and declare them there."""
    path = stage / f"{job.side}.floats"
    with path.open("wb") as file:
        for value in job.floats():
            name = name_of(value)
            constant = job.constants[name]
            step = max(1, UNIT_BYTES * constant.shape[0] // (4 * constant.elements))
            offset = None
            for low in range(0, constant.shape[0], step):
                rest = tuple((0, size) for size in constant.shape[1:])
                box = ((low, min(low + step, constant.shape[0])), *rest)
                values = job.weights.read(constant, box, name).to(constant.dtype).contiguous().numpy()
                if offset is None:
                    offset = append(file, values)[0]
                else:
                    file.write(values.data)
            tensor = tensor_of(value)
            length = constant.elements * constant.dtype.itemsize
            value.const_value = ir.ExternalTensor(
                path.name,
                offset,
                length,
                tensor.dtype,
                shape=ir.Shape(tensor.shape.numpy()),
                name=name,
                base_dir=stage,
            )


def _row(job: _Job, weight: Weight, facts: Mapping[str, Any]) -> QuantRow:
    plan = job.plans[weight]
    if plan.precision == "fp32":
        return float_row(weight, job.side, plan.reason)
    place = next(p for p in job.places if p.weight == weight)
    table = weight.kind == "table"
    return QuantRow(
        weight=weight.name,
        graph=job.side,
        kind=weight.kind,
        shape=weight.shape,
        scheme="fp16" if plan.precision == "fp16" else "absmax" if table else scheme_name(job.scheme),
        block=job.policy.block if plan.precision == "int8" and not table else 0,
        bits=plan.bits,
        sqnr_db=numerics.ratio_db(facts["signal"], facts["noise"]),
        output_sqnr_db=None,
        fp32_bytes=weight.elements * 4,
        quantized_bytes=place.length + place.scale_bytes,
        reason_if_skipped=plan.reason,
    )


def _key(jobs: Sequence[_Job], policy: Policy) -> str:
    return _hash([[job.key for job in jobs], policy_document(policy)])


def _hash(document: Any) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _finished(out: Path, key: str) -> Streamed | None:
    """Return what an earlier run of the same key left, if all of its files are there."""
    if not (out / DONE).is_file():
        return None
    document = json.loads((out / DONE).read_text())
    files: dict[str, int] = document["files"]
    if document["key"] != key or any(
        not (out / n).is_file() or (out / n).stat().st_size != s for n, s in files.items()
    ):
        return None
    found = {n.split(".")[0]: table_of(out / n) for n in files if n.endswith(".w8a32.onnx")}
    tables = {side: table for side, table in found.items() if table is not None}
    return Streamed(tables, sum(files.values()), 0, unchanged=True)


def _check_space(out: Path, stage: Path, jobs: Sequence[_Job]) -> None:
    need = sum(j.blob_bytes + 4 * j.scale_bytes + 10 * sum(j.constants[name_of(v)].elements for v in j.floats())
               for j in jobs)  # fmt: skip
    free = shutil.disk_usage(out).free  # before what is there: space is reserved meanwhile, and may count twice
    there = sum(f.stat().st_blocks * 512 for f in stage.iterdir())
    if free + there < need:
        raise UgsepError(f"'{out}' needs {need / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; free space or pass --out")


@contextmanager
def _disk(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UgsepError(
            f"cannot write to '{out}' ({error.strerror}); free space or give another folder, then start again: "
            "what is finished stays"
        ) from error
