"""Writing of ONNX graphs and the files of their tensors: whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import numpy as np
import onnx
from onnx import TensorProto
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from graphs.base.errors import UgsepError
from quant.arrays import Array
from quant.graph.gemms import read_tensor

EXTERNAL_BYTES = 64 * 1024  # larger tensors go to the data file, so that the graph stays far below 2 GB
_ALIGNMENT = 4096  # lets a runtime map the file
_COPY_ROWS_BYTES = 1 << 26


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """Yield a folder to write into; at the end its files replace those of ``folder``, after an error none do.

    Graphs (``*.onnx``) go away before and come back after the data files they point into, so a kill in between
    leaves no graph with another graph's data.

    Raises:
        UgsepError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder))
    except OSError as error:
        raise UgsepError(f"cannot write to '{folder}' ({error.strerror}); give another output folder") from error
    try:
        yield stage
        publish(sorted(stage.iterdir()), folder)
    except OSError as error:
        raise UgsepError(
            f"cannot write to '{folder}' ({error.strerror}); check permissions and free space"
        ) from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def publish(files: Iterable[Path], folder: Path) -> None:
    """Move files into a folder: its old graphs (``*.onnx``) go first, the new ones come last."""
    ordered = sorted(files, key=lambda p: (p.suffix == ".onnx", p.name))
    for file in ordered:
        if file.suffix == ".onnx":
            (folder / file.name).unlink(missing_ok=True)
    for file in ordered:
        os.replace(file, folder / file.name)


def write_whole(path: Path, text: str) -> None:
    """Write a text file, folders and all; where that fails the old file stays.

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
    """Return where a tensor of ``size`` bytes starts in a data file that is ``offset`` bytes long."""
    step = _ALIGNMENT if size >= EXTERNAL_BYTES else 64
    return offset + -offset % step


def append(file: IO[bytes], array: Array) -> tuple[int, int]:
    """Append an array's bytes, aligned, and return (offset, length); large arrays are written piece by piece."""
    offset = aligned(file.tell(), array.nbytes)
    file.write(b"\0" * (offset - file.tell()))
    flat = array.reshape(-1)
    step = _COPY_ROWS_BYTES // max(1, array.itemsize)
    for start in range(0, flat.size, step):
        file.write(np.ascontiguousarray(flat[start : start + step]).data)
    return offset, array.nbytes


def write_graph(
    model: onnx.ModelProto, path: Path, source: Path, narrow: frozenset[str] = frozenset(), shared: str = ""
) -> None:
    """Write a graph whose external float tensors lie in folder ``source``, with a data file of its own.

    The initializers named by ``narrow`` are converted to FP16. Tensors in the file ``shared`` stay where they are.
    Large tensors go to ``<path>.data``, one at a time.

    Raises:
        UgsepError: a weight to narrow exceeds the FP16 range, or a data file is missing.
    """
    data = path.with_name(f"{path.name}.data")
    with data.open("wb") as file:
        for tensor in model.graph.initializer:
            external = uses_external_data(tensor)
            if external and shared and ExternalDataInfo(tensor).location == shared:
                continue
            if tensor.name not in narrow and not external:
                continue
            values = read_tensor(tensor, source)
            if tensor.name in narrow:
                values = _to_half(values, tensor.name)
            _place(tensor, values, file, data.name)
        size = file.tell()
    if not size:
        data.unlink()
    path.write_bytes(model.SerializeToString())


def _place(tensor: TensorProto, values: Array, file: IO[bytes], location: str) -> None:
    name, dims = tensor.name, tuple(values.shape)
    tensor.Clear()
    tensor.name, tensor.data_type = name, onnx.helper.np_dtype_to_tensor_dtype(values.dtype)
    tensor.dims.extend(dims)
    if values.nbytes < EXTERNAL_BYTES:
        tensor.raw_data = np.ascontiguousarray(values).tobytes()
        return
    offset, length = append(file, values)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))


def _to_half(values: Array, name: str) -> Array:
    """Convert to FP16. Single constants stay in range (mask values) and away from zero (epsilons)."""
    limit = float(np.finfo(np.float16).max)
    if values.size == 1:
        bounded = np.where(np.isinf(values), values, np.clip(values, -limit, limit))
        tiny = (bounded != 0) & (np.abs(bounded) < 2.0**-24)
        return np.where(tiny, np.copysign(2.0**-24, bounded), bounded).astype(np.float16)
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    if np.isinf(half).any() and not np.isinf(values).any():
        raise UgsepError(f"'{name}' exceeds the FP16 range (65504); keep its operator in keep_fp32_ops")
    return half
