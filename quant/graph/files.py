"""Write ONNX graphs and the files of their tensors, all or nothing."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

import numpy as np
import onnx_ir as ir

from export.io import stamp
from graphs.base.errors import UgsepError
from graphs.base.scratch import scratch_folder
from quant.arrays import Array
from quant.graph.gemms import read_tensor, tensor_of

EXTERNAL_BYTES = 64 * 1024  # larger tensors go to the data file, so that the graph stays far below 2 GB
_PARTIAL = ".partial-"
_ALIGNMENT = 4096  # lets a runtime map the file
_COPY_ROWS_BYTES = 1 << 26


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """Yield a folder to write into; on success its files replace those of ``folder``, after an error none do.

    Graphs (``*.onnx``) are removed before and moved in after the data files they point into, so a kill in between
    leaves no graph with another graph's data. What killed runs left in the folder is removed first.

    Raises:
        UgsepError: the folder cannot be written.
    """
    created = [path for path in (folder, *folder.parents) if not path.exists()]
    with ExitStack() as stack:
        stack.callback(_remove_empty, created)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stage = stack.enter_context(scratch_folder(_PARTIAL, folder))
        except OSError as error:
            raise UgsepError(f"cannot write to '{folder}' ({error.strerror}); give another output folder") from error
        try:
            yield stage
            publish(sorted(stage.iterdir()), folder)
        except OSError as error:
            raise UgsepError(
                f"cannot write to '{folder}' ({error.strerror}); check permissions and free space"
            ) from error


def _remove_empty(folders: Iterable[Path]) -> None:
    for path in folders:
        with suppress(OSError):  # not empty: the run succeeded, or others write there too
            path.rmdir()


def publish(files: Iterable[Path], folder: Path) -> None:
    """Move files into a folder: old graphs (``*.onnx``) are removed first, new ones moved last."""
    ordered = sorted(files, key=lambda p: (p.suffix == ".onnx", p.name))
    for file in ordered:
        if file.suffix == ".onnx":
            (folder / file.name).unlink(missing_ok=True)
    for file in ordered:
        os.replace(file, folder / file.name)


def write_whole(path: Path, text: str) -> None:
    """Write a text file and its folders; if that fails, the old file stays.

    Raises:
        UgsepError: it cannot be written.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise UgsepError(f"cannot write '{path}' ({error.strerror}); check permissions and free space") from error


def aligned(offset: int, size: int) -> int:
    """Return the offset of a tensor of ``size`` bytes appended to a data file of ``offset`` bytes."""
    step = _ALIGNMENT if size >= EXTERNAL_BYTES else 64
    return offset + -offset % step


def append(file: IO[bytes], array: Array) -> tuple[int, int]:
    """Append an array's bytes, aligned, and return (offset, length); large arrays are written in chunks."""
    offset = aligned(file.tell(), array.nbytes)
    file.write(b"\0" * (offset - file.tell()))
    flat = array.reshape(-1)
    step = _COPY_ROWS_BYTES // max(1, array.itemsize)
    for start in range(0, flat.size, step):
        file.write(np.ascontiguousarray(flat[start : start + step]).data)
    return offset, array.nbytes


def write_graph(
    model: ir.Model, path: Path, narrow: frozenset[str] = frozenset(), shared: str = "", **stamps: str
) -> None:
    """Write a graph with ``ugsep.*`` stamps, and its large float tensors to ``<path>.data``, one at a time.

    The initializers named by ``narrow`` are converted to FP16. Tensors in the file ``shared`` stay where they are.

    Raises:
        UgsepError: a weight to narrow exceeds the FP16 range, or a data file is missing.
    """
    data = path.with_name(f"{path.name}.data")
    with data.open("wb") as file:
        for name, value in model.graph.initializers.items():
            tensor = tensor_of(value)
            location = str(tensor.location) if isinstance(tensor, ir.ExternalTensor) else ""
            if (name not in narrow and not location) or (shared and location == shared):
                continue
            values = read_tensor(tensor)
            value.const_value = _stored(name, _as_fp16(values, name) if name in narrow else values, file, data.name)
        size = file.tell()
    if not size:
        data.unlink()
    proto = ir.to_proto(model)
    stamp(proto, **stamps)  # on the protobuf: onnx_ir sorts properties, files have had these last
    path.write_bytes(proto.SerializeToString())


def _stored(name: str, values: Array, file: IO[bytes], location: str) -> ir.TensorProtocol:
    """Return a tensor to write into the graph, or one whose values are appended to the data file."""
    if values.nbytes < EXTERNAL_BYTES:
        return ir.Tensor(np.asarray(values, order="C"), name=name)
    offset, length = append(file, values)
    dtype = ir.DataType.from_numpy(values.dtype)
    return ir.ExternalTensor(location, offset, length, dtype, shape=ir.Shape(values.shape), name=name)


def _as_fp16(values: Array, name: str) -> Array:
    """Convert to FP16. Scalars are clipped to its range (mask values) and kept off zero (epsilons)."""
    limit = float(np.finfo(np.float16).max)
    if values.size == 1:
        bounded = np.where(np.isinf(values), values, np.clip(values, -limit, limit))
        tiny = (bounded != 0) & (np.abs(bounded) < 2.0**-24)
        return np.where(tiny, np.copysign(2.0**-24, bounded), bounded).astype(np.float16)
    with np.errstate(over="ignore"):
        fp16 = values.astype(np.float16)
    if np.isinf(fp16).any() and not np.isinf(values).any():
        raise UgsepError(f"'{name}' exceeds the FP16 range (65504); keep its operator in keep_fp32_ops")
    return fp16
