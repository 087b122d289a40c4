"""Read, check, hash and stamp ONNX files: one implementation for all packages."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import IO, Protocol

import numpy as np
import onnx
import onnx_ir as ir
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from export.graph_limits import check_graph
from graphs.base.errors import UgsepError, first_line, printable_line
from graphs.base.regular_file import is_regular_file

__all__ = [
    "check_file",
    "content_sha256",
    "file_sha256",
    "properties",
    "read_graph",
    "read_model",
    "stamp",
    "write_model",
]

_CHUNK = 1 << 22
_TYPED_FIELDS = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data")


class _Digest(Protocol):
    def update(self, data: bytes, /) -> None: ...


def read_graph(path: Path) -> onnx.ModelProto:
    """Read an ONNX file as protobuf; external data stays on disk. What it says of its tensors is checked.

    Raises:
        UgsepError: the file is missing, no file or not ONNX, or a tensor has a shape, size or place that cannot be.
    """
    if not is_regular_file(path, "export the model again"):
        raise UgsepError(f"'{path}' does not exist; export the model first")
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf raises its own classes for a broken file
        raise _unreadable(path, error) from error
    check_graph(model, path)
    return model


def read_model(path: Path) -> ir.Model:
    """Read an ONNX file as onnx_ir; external data stays on disk. What it says of its tensors is checked.

    Raises:
        UgsepError: as ``read_graph``, or its external data has hard links, which onnx_ir refuses to read.
    """
    proto = read_graph(path)
    for location in sorted({ExternalDataInfo(t).location for t in proto.graph.initializer if uses_external_data(t)}):
        if path.with_name(location).stat().st_nlink > 1:
            raise UgsepError(
                f"'{path.with_name(location)}' has hard links, which the ONNX libraries take for an attack; copy the "
                "folder without them, as cp -r does"
            )
    try:
        model = ir.from_proto(proto)
    except Exception as error:  # onnx_ir raises many classes for a broken graph
        raise _unreadable(path, error) from error
    ir.external_data.set_base_dir(model.graph, path.parent)
    return model


def write_model(model: ir.Model, path: Path, data: str | None, external_bytes: int) -> None:
    """Write an ONNX file; tensors of at least ``external_bytes`` go to the file ``data`` next to it, if given."""
    ir.save(model, path, external_data=data, size_threshold_bytes=external_bytes)
    if data is not None and path.with_name(data).exists():
        shutil.copymode(path, path.with_name(data))  # onnx_ir writes it 0600, whatever the umask


def check_file(path: Path, *, infer_shapes: bool = True) -> None:
    """Run onnx's checker on a file, by path (any size), by default with strict shape inference.

    Raises:
        UgsepError: the file is not valid ONNX.
    """
    try:
        onnx.checker.check_model(str(path), full_check=infer_shapes)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise UgsepError(
            f"'{path}' is not valid ONNX ({printable_line(first_line(error))}); export the model again"
        ) from error


def file_sha256(path: Path) -> str:
    """Return the sha256 of an ONNX file and its external data as they are stored, in whatever folder.

    Raises:
        UgsepError: the file is not ONNX, or it or its external data is missing.
    """
    model = read_graph(path)
    digest = hashlib.sha256(path.read_bytes())
    for location in sorted({ExternalDataInfo(t).location for t in model.graph.initializer if uses_external_data(t)}):
        with _open_data(path, location) as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()


def content_sha256(path: Path) -> str:
    """Return the sha256 of a graph and its weights, the same whether weights are inline or external data.

    Raises:
        UgsepError: the file or its external data is missing, broken or truncated.
    """
    model = read_graph(path)
    digest = hashlib.sha256()
    for tensor in model.graph.initializer:
        digest.update(json.dumps([tensor.name, tensor.data_type, list(tensor.dims)]).encode())
        _add_values(digest, tensor, path)
        for field in ("raw_data", "external_data", "data_location"):
            tensor.ClearField(field)
        if tensor.data_type != onnx.TensorProto.STRING:  # typed fields are hashed as bytes above
            for field in _TYPED_FIELDS:
                tensor.ClearField(field)
    digest.update(model.SerializeToString(deterministic=True))
    return digest.hexdigest()


def properties(model: ir.Model | onnx.ModelProto) -> dict[str, str]:
    """Return the model's ``metadata_props``."""
    if isinstance(model, ir.Model):
        return dict(model.metadata_props)
    return {p.key: p.value for p in model.metadata_props}


def stamp(model: ir.Model | onnx.ModelProto, /, **values: str) -> None:
    """Set ``ugsep.*`` metadata properties in place, one per keyword, sorted, after those that stay."""
    new = {f"ugsep.{key}": value for key, value in sorted(values.items())}
    kept = {key: value for key, value in properties(model).items() if key not in new}
    if isinstance(model, ir.Model):
        model.metadata_props.clear()
        model.metadata_props.update(kept | new)
        return
    del model.metadata_props[:]
    for key, value in (kept | new).items():
        model.metadata_props.add(key=key, value=value)


def _add_values(digest: _Digest, tensor: onnx.TensorProto, path: Path) -> None:
    if not uses_external_data(tensor):
        digest.update(tensor.raw_data or np.ascontiguousarray(onnx.numpy_helper.to_array(tensor)).tobytes())
        return
    info = ExternalDataInfo(tensor)
    with _open_data(path, info.location) as file:
        file.seek(info.offset or 0)
        left = info.length if info.length is not None else os.fstat(file.fileno()).st_size - (info.offset or 0)
        while left > 0:
            chunk = file.read(min(_CHUNK, left))
            if not chunk:
                raise UgsepError(f"'{file.name}' ends inside the weight '{tensor.name}'; export the model again")
            digest.update(chunk)
            left -= len(chunk)


def _open_data(path: Path, location: str) -> IO[bytes]:
    data = path.parent / location
    try:
        return data.open("rb")
    except OSError as error:
        raise UgsepError(f"'{data}' is missing (weights of {path.name}); export the model again") from error


def _unreadable(path: Path, error: Exception) -> UgsepError:
    return UgsepError(
        f"'{path}' is not a readable ONNX file ({printable_line(first_line(error))}); export the model again"
    )
