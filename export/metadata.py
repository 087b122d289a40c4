"""What is stamped on every ONNX file: model, side, precision, tool version, and the weights int8 must not touch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.metadata import version
from typing import Literal

import onnx_ir as ir

from export.io import stamp
from graphs.base.errors import UgsepError

GraphSide = Literal["full", "user", "item"]
OPSET = 21
IR_VERSION = 10


@dataclass(frozen=True)
class Stamp:
    """The ``ugsep.*`` entries of a file's ``metadata_props``."""

    model: str
    side: GraphSide
    precision: str
    keep_float: tuple[str, ...]
    version: str = ""

    def write(self, model: ir.Model) -> None:
        """Put the stamp on a model, replacing an older one."""
        stamp(
            model,
            model=self.model,
            side=self.side,
            precision=self.precision,
            keep_float=json.dumps(list(self.keep_float)),
            version=self.version or version("ugsep"),
        )


def read_stamp(model: ir.Model, where: str) -> Stamp:
    """Return the stamp of a model; ``where`` names the file in errors.

    Raises:
        UgsepError: the file was not written by this tool.
    """
    props = model.metadata_props
    side = props.get("ugsep.side", "")
    if side not in ("full", "user", "item"):
        raise UgsepError(f"{where} has no ugsep.side in its metadata; export the model with this tool")
    return Stamp(
        model=props.get("ugsep.model", ""),
        side=side,  # type: ignore[arg-type]  # checked to be one of the literals above
        precision=props.get("ugsep.precision", "fp32"),
        keep_float=tuple(json.loads(props.get("ugsep.keep_float", "[]"))),
        version=props.get("ugsep.version", ""),
    )
