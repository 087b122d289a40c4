"""The stamp on every ONNX file: model, side, precision, tool version, and the weights that must stay float."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import get_args

import onnx
import onnx_ir as ir

from export.io import properties, stamp
from graphs.base.config import parse
from graphs.base.errors import UgsepError
from graphs.base.json_text import read_json
from graphs.base.names import GraphSide

OPSET = 21
IR_VERSION = 10


@dataclass(frozen=True)
class Stamp:
    """The ``ugsep.*`` entries of a file's ``metadata_props``."""

    model: str
    side: GraphSide
    precision: str
    keep_float: tuple[str, ...]

    def write(self, model: ir.Model) -> None:
        """Put the stamp on a model, replacing an older one."""
        stamp(
            model,
            model=self.model,
            side=self.side,
            precision=self.precision,
            keep_float=json.dumps(list(self.keep_float)),
            version=version("ugsep"),
        )


@dataclass(frozen=True)
class _KeepFloat:
    keep_float: tuple[str, ...]


def side_of(model: ir.Model | onnx.ModelProto, path: Path) -> GraphSide:
    """Return the side stamped in a graph, else the one in its file name.

    Raises:
        UgsepError: neither says full, user or item.
    """
    side = properties(model).get("ugsep.side", path.name.split(".")[0])
    for known in get_args(GraphSide):
        if side == known:
            return known  # type: ignore[no-any-return]  # get_args is untyped
    raise UgsepError(f"'{path}' does not say its side; stamp ugsep.side or name it user.onnx or item.onnx")


def keep_float_patterns(model: ir.Model | onnx.ModelProto, path: Path) -> tuple[str, ...]:
    """Return the globs of initializers that must stay float; ``path`` names the graph in errors.

    Raises:
        UgsepError: the stamp is not a JSON list of strings.
    """
    location = f"'{path}': ugsep.keep_float"
    fix = "export the model again, or stamp a JSON list of names of weights, as in []"
    patterns = read_json(properties(model).get("ugsep.keep_float", "[]"), location, fix)
    return parse(_KeepFloat, {"keep_float": patterns}, f"'{path}'", fix=fix).keep_float
