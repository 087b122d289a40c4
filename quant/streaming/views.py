"""Write the typed views of an encoded graph, with its table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from export.io import check_file
from quant.graph.files import append
from quant.graph.gemms import Weight, name_of, tensor_of
from quant.graph.rewrite import encode_weights
from quant.schemes import numerics
from quant.schemes.schemes import scheme_name
from quant.streaming import layout
from quant.streaming.encode import EncodedSide
from quant.streaming.job import StreamJob
from quant.weight_table import QuantRow, QuantTable, float_row
from quant.weights import write_views


def write_side(job: StreamJob, encoded: EncodedSide, stage: Path) -> QuantTable:
    """Write the views of an encoded side, checked, into ``stage``."""
    _write_floats(job, stage)
    rows = tuple(_row(job, weight, encoded.facts.get(weight.name, {})) for weight in job.plans)
    table = QuantTable(job.side, scheme_name(job.scheme), "", rows)
    encode_weights(job.model, encoded.initializers)
    write_views(job.model, stage, f"the {job.side} graph", job.blob, job.policy, table)
    views = [f"{job.side}.{view}.onnx" for view in ("w8a32", "w8a16")]
    for view in views:
        check_file(stage / view)
    written = [name + end for name in views for end in ("", ".data")]
    present = tuple(n for n in (job.blob, *written) if (stage / n).exists() and (n != job.blob or job.slots))
    return replace(table, files=present)


def _write_floats(job: StreamJob, stage: Path) -> None:
    """Write the large float weights to a scratch file, as float32, and point the graph there."""
    path = stage / f"{job.side}.floats"
    with path.open("wb") as file:
        for value in job.floats():
            name = name_of(value)
            constant = job.constants[name]
            step = max(1, layout.CHUNK_BYTES * constant.shape[0] // (4 * constant.elements))
            offset = None
            for low in range(0, constant.shape[0], step):
                rest = tuple((0, size) for size in constant.shape[1:])
                region = ((low, min(low + step, constant.shape[0])), *rest)
                values = job.weights.read(constant, region, name).to(constant.dtype).contiguous().numpy()
                if offset is None:
                    offset = append(file, values)[0]
                else:
                    file.write(values.data)
            length, shape = constant.elements * constant.dtype.itemsize, ir.Shape(constant.shape)
            value.const_value = ir.ExternalTensor(
                path.name, offset, length, tensor_of(value).dtype, shape=shape, name=name, base_dir=stage
            )


def _row(job: StreamJob, weight: Weight, facts: Mapping[str, Any]) -> QuantRow:
    plan = job.plans[weight]
    if plan.precision == "fp32":
        return float_row(weight, job.side, plan.reason)
    slot = next(slot for slot in job.slots if slot.weight == weight)
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
        quantized_bytes=slot.length + slot.scale_bytes,
        reason_if_skipped=plan.reason,
    )
