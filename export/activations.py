"""The int8 range of what each int8 weight multiplies: written by quantization, read by lowering."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import onnx
import onnx_ir as ir

from export.io import properties
from graphs.base.config import check_plain, parse
from graphs.base.errors import UgsepError, nearest
from graphs.base.json_text import read_json

#: The metadata property that holds them is ``ugsep.activations``.
ACTIVATIONS_KEY = "activations"
_FIX = "quantize the graph again, with a calibration"
_STEPS = 255  # between the least and the largest uint8
#: Float32 scales below this would be subnormal, and the products they stand for 0.
_SMALLEST_SCALE = 2.0**-126
_LARGEST_SCALE = 2.0**126


@dataclass(frozen=True)
class ActivationRange:
    """How the inputs of a product become uint8: ``round(x / scale) + zero``, saturating at 0 and 255.

    0.0 is exact. Values beyond ``low`` and ``high`` count as these.
    """

    scale: float
    zero: int

    @property
    def low(self) -> float:
        """The least value that does not saturate."""
        return -self.zero * self.scale

    @property
    def high(self) -> float:
        """The largest value that does not saturate."""
        return (_STEPS - self.zero) * self.scale


@dataclass(frozen=True)
class _Document:
    ranges: Mapping[str, ActivationRange] = field(default_factory=dict)


def range_between(low: float, high: float) -> ActivationRange | None:
    """Return the range of values from ``low`` to ``high`` and of 0, None if they are not finite or leave no scale."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / _STEPS
    if not _SMALLEST_SCALE <= scale <= _LARGEST_SCALE:  # false for NaN and infinity too
        return None
    return ActivationRange(scale, round(-low / scale))


def activations_text(ranges: Mapping[str, ActivationRange]) -> str:
    """Return ranges by weight as the text of the property."""
    return json.dumps({weight: asdict(found) for weight, found in ranges.items()}, sort_keys=True)


def activation_ranges(model: ir.Model | onnx.ModelProto, path: Path) -> Mapping[str, ActivationRange] | None:
    """Return the stamped ranges by weight, None for a graph that was quantized without a calibration.

    ``path`` names the graph in errors.

    Raises:
        UgsepError: the stamp is malformed, names a weight that the graph does not have, or a number in it is out of
            range; names the path of the field.
    """
    text = properties(model).get(f"ugsep.{ACTIVATIONS_KEY}")
    if text is None:
        return None
    location = f"'{path}': ugsep.{ACTIVATIONS_KEY}"
    document = read_json(text, location, _FIX)
    check_plain(document, location)
    ranges = parse(_Document, {"ranges": document}, location).ranges
    graph = model.graph
    known = set(graph.initializers) if isinstance(graph, ir.Graph) else {t.name for t in graph.initializer}
    for weight, found in ranges.items():
        if weight not in known:
            raise UgsepError(f"{location}: the graph has no weight '{weight}'{nearest(weight, known)}; {_FIX}")
        if not (math.isfinite(found.scale) and _SMALLEST_SCALE <= found.scale <= _LARGEST_SCALE):
            raise UgsepError(f"{location}: ranges.{weight}.scale is {found.scale}, which is out of range; {_FIX}")
        if not 0 <= found.zero <= _STEPS:
            raise UgsepError(f"{location}: ranges.{weight}.zero is {found.zero}, not from 0 to {_STEPS}; {_FIX}")
    return ranges
