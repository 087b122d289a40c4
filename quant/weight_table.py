"""The table of a quantized graph: one row per weight, stamped in the graph's metadata."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from graphs.base.config import check_plain, parse
from graphs.base.errors import UgsepError
from graphs.base.finite import finite
from graphs.base.json_text import read_json
from graphs.base.json_words import shown
from quant.graph.gemms import Weight, load_graph
from quant.policy import BITS, Precision

TABLE_KEY = "quant"  # metadata property ugsep.quant: the table of the graph, as JSON
_KINDS = ("matmul", "table")
_FIX = "quantize the graph again"
_DERIVED = ("files", "fp32_bytes", "quantized_bytes")  # written for readers of the JSON


@dataclass(frozen=True)
class QuantRow:
    """How one weight is stored; ``bits`` 8, 16 or 32.

    ``sqnr_db`` compares the stored weight with the FP32 one; ``output_sqnr_db`` weights the errors with the
    calibrated second moments of the inputs (after bias correction), None without calibration. ``reason_if_skipped``
    is "" for int8 weights. ``note`` says why awq left an int8 weight unscaled.
    """

    weight: str
    graph: str
    kind: str
    shape: tuple[int, ...]
    scheme: str
    block: int
    bits: int
    sqnr_db: float
    output_sqnr_db: float | None
    fp32_bytes: int
    quantized_bytes: int
    reason_if_skipped: str = ""
    note: str = ""

    @property
    def precision(self) -> Precision:
        """int8, fp16 or fp32."""
        return next(p for p, bits in BITS.items() if bits == self.bits)

    def to_json(self) -> dict[str, Any]:
        """Return the row as plain values; infinite SQNR becomes None."""
        return dict(finite(asdict(self)))


@dataclass(frozen=True)
class QuantTable:
    """The rows of one graph, and the names of the files that hold it."""

    graph: str
    scheme: str
    samples_sha256: str
    rows: tuple[QuantRow, ...]
    files: tuple[str, ...] = ()

    @property
    def fp32_bytes(self) -> int:
        """Bytes of all listed weights in FP32."""
        return sum(r.fp32_bytes for r in self.rows)

    @property
    def quantized_bytes(self) -> int:
        """Bytes of all listed weights as stored, scales included."""
        return sum(r.quantized_bytes for r in self.rows)

    def to_json(self) -> dict[str, Any]:
        """Return the table as plain values; infinite SQNR becomes None."""
        totals = {"fp32_bytes": self.fp32_bytes, "quantized_bytes": self.quantized_bytes}
        return dict(finite({**asdict(self), **totals}))


def float_row(weight: Weight, side: str, reason: str) -> QuantRow:
    """Return the row of a weight that stays float32."""
    size = weight.elements * 4
    return QuantRow(
        weight=weight.name,
        graph=side,
        kind=weight.kind,
        shape=weight.shape,
        scheme="",
        block=0,
        bits=BITS["fp32"],
        sqnr_db=float("inf"),
        output_sqnr_db=None,
        fp32_bytes=size,
        quantized_bytes=size,
        reason_if_skipped=reason,
    )


def table_of(path: Path) -> QuantTable | None:
    """Return the table stamped in a quantized graph, None for a float graph.

    Raises:
        UgsepError: the stamp is malformed, or a number in it is out of range; names the path of the field.
    """
    text = load_graph(path).metadata_props.get(f"ugsep.{TABLE_KEY}")
    if text is None:
        return None
    location = f"'{path}': ugsep.{TABLE_KEY}"
    document = read_json(text, location, _FIX)
    check_plain(document, location)
    infinite: set[int] = set()
    if isinstance(document, dict):
        document = {key: value for key, value in document.items() if key not in _DERIVED}
        if isinstance(document.get("rows"), list):
            infinite = {i for i, row in enumerate(document["rows"]) if _is_infinite(row)}
            document["rows"] = [
                {**row, "sqnr_db": 0.0} if i in infinite else row for i, row in enumerate(document["rows"])
            ]
    table = parse(QuantTable, document, location)
    for i, row in enumerate(table.rows):
        for field, problem in _problems(row):
            raise UgsepError(f"{location}: rows[{i}].{field} is {problem}; {_FIX}")
    rows = (replace(row, sqnr_db=math.inf) if i in infinite else row for i, row in enumerate(table.rows))
    return replace(table, rows=tuple(rows))


def _is_infinite(row: Any) -> bool:
    """Whether ``to_json`` replaced an infinite SQNR of a row."""
    return isinstance(row, dict) and row.get("sqnr_db", 0) is None


def _problems(row: QuantRow) -> Iterator[tuple[str, str]]:
    """Yield the fields of a row whose numbers or words no quantization writes, and their problems."""
    if row.bits not in BITS.values():
        yield "bits", f"{row.bits}, not 8, 16 or 32"
    if row.kind not in _KINDS:
        yield "kind", f"{shown(row.kind)}, not {' or '.join(_KINDS)}"
    for name in ("block", "fp32_bytes", "quantized_bytes"):
        if getattr(row, name) < 0:
            yield name, f"{getattr(row, name)}, which is out of range"
    for axis, size in enumerate(row.shape):
        if size < 0:
            yield f"shape[{axis}]", f"{size}, which is out of range"
