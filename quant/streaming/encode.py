"""Encode the weights of one graph in parallel, chunk by chunk, and journal those that are finished."""

from __future__ import annotations

import itertools
import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from threading import Event
from typing import Any

import torch
from torch import Tensor

from export.weights.direct_io import BLOCK, aligned_buffer
from export.weights.lazy_weights import Slice
from graphs.base.errors import UgsepError
from graphs.base.progress import Progress, ProgressCallback
from quant.graph.files import aligned
from quant.graph.rewrite import Encoded
from quant.streaming.chunks import Quantized, quantize_columns, quantize_rows, to_fp16
from quant.streaming.files import SideFiles, chunk_digest, joined_digest, opened, reserve
from quant.streaming.job import StreamJob
from quant.streaming.journal import Journal, read_journal
from quant.streaming.layout import CHUNK_BYTES, Slot, Source, source_of

#: Workers in addition to the threads that quantize: those wait for the disk.
WAITING = 2
#: A worker's buffer holds the values of a chunk, then what is read of it, in at most 4 bytes each and whole blocks.
_VALUES_BYTES = aligned(CHUNK_BYTES // 4, CHUNK_BYTES)
_BUFFER_BYTES = _VALUES_BYTES + CHUNK_BYTES + 2 * BLOCK


@dataclass(frozen=True)
class EncodedSide:
    """A side whose weights are all in its files: journalled facts and new initializers by name of weight."""

    facts: Mapping[str, Mapping[str, Any]]
    initializers: Mapping[str, Encoded]
    resumed: int


def encode_side(
    job: StreamJob, out: Path, stage: Path, threads: int, stop: Event, progress: ProgressCallback
) -> EncodedSide:
    """Encode the weights of a graph into its data files in ``stage``, except those an earlier run finished."""
    blob, scales = stage / job.blob, stage / f"{job.side}.scales"
    journal_path = stage / f"{job.side}.journal"
    with _stopping(stop):
        entries = read_journal(journal_path, job.key)
        if entries and not blob.exists() and (out / job.blob).exists():
            os.replace(out / job.blob, blob)  # killed while the files were published
        with opened(blob, scales) as files:
            known = [slot for slot in job.slots if slot.name in entries]
            done = {slot.name: entries[slot.name] for slot in known if files.holds(slot, entries[slot.name])}
            reserve(files.data, job.blob_bytes)
            os.truncate(files.scale_data, job.scale_bytes)
            journal = Journal(journal_path, job.key, done)
            todo = [slot for slot in job.slots if slot.name not in done]
            with closing(journal), closing(_encode_slots(todo, job, files, threads, stop, progress)) as finished:
                for slot, facts in finished:
                    journal.finished(slot.name, **facts)
                    done[slot.name] = facts
            initializers = {slot.name: files.encoded(slot, job.blob) for slot in job.slots}
    return EncodedSide(done, initializers, len(job.slots) - len(todo))


@contextmanager
def _stopping(stop: Event) -> Iterator[None]:
    """Stop all background work if the block fails; do not enter the block if work has been stopped."""
    if stop.is_set():
        raise CancelledError
    try:
        yield
    except BaseException:
        stop.set()
        raise


def _encode_slots(
    slots: Sequence[Slot], job: StreamJob, files: SideFiles, threads: int, stop: Event, progress: ProgressCallback
) -> Generator[tuple[Slot, dict[str, Any]]]:
    """Encode the weights, several chunks at a time, and yield them in order as they finish."""
    constants = job.model.graph.initializers
    sources = {slot.name: source_of(constants[slot.name], job.constants, job.weights) for slot in slots}
    chunks = [(slot, bounds) for slot in slots for bounds in slot.chunks()]
    workers = threads + WAITING
    buffers: SimpleQueue[Tensor] = SimpleQueue()
    for _ in range(workers):
        buffers.put(aligned_buffer(_BUFFER_BYTES))

    def work(chunk: tuple[Slot, Slice]) -> tuple[int, float, float]:
        if stop.is_set():
            raise CancelledError
        slot, bounds = chunk
        buffer = buffers.get()
        try:
            done = encode_chunk(slot, bounds, sources[slot.name], buffer)
            files.write(slot, bounds, done)
            return chunk_digest(done.values, done.scale), done.signal, done.noise
        finally:
            buffers.put(buffer)

    progress(Progress(f"quantize {job.side}", 0, len(slots)))
    pool = ThreadPoolExecutor(workers, "quant encode")
    try:
        results = zip(chunks, pool.map(work, chunks), strict=True)
        for number, (name, group) in enumerate(itertools.groupby(results, key=lambda r: r[0][0].name)):
            slot, found = slots[number], [result for _, result in group]
            assert slot.name == name
            digest = joined_digest(d for d, _, _ in found)
            facts = {"signal": sum(s for _, s, _ in found), "noise": sum(n for _, _, n in found)}
            progress(Progress(f"quantize {job.side}", number + 1, len(slots), name))
            yield slot, {"crc32": digest, **facts}
    finally:
        pool.shutdown(cancel_futures=True)


def encode_chunk(slot: Slot, bounds: Slice, source: Source, buffer: Tensor) -> Quantized:
    """Read the values of one slice of a weight into ``buffer`` and quantize them."""
    values = source.read(bounds, buffer[_VALUES_BYTES:])
    written = buffer[:_VALUES_BYTES].view(torch.int8) if values.numel() <= _VALUES_BYTES else None
    done: Quantized | None
    if slot.bits == 16:
        done = to_fp16(values)
    elif slot.weight.kind == "table":
        done = quantize_rows(values, written)
    else:
        done = quantize_columns(values.flatten(0, -2), slot.block, written)
    if done is None:
        source.refuse(values)
        raise UgsepError(f"weight '{slot.name}' exceeds the FP16 range; give it int8 or fp32 in the policy")
    return done
