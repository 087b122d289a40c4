"""Quantize the weights of one graph: a scheme per weight, one file of constants, two typed views, one table."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import numpy as np
import onnx_ir as ir

from export.activations import ACTIVATIONS_KEY, ActivationRange, activations_text, range_between
from export.metadata import keep_float_patterns, side_of
from graphs.base.errors import UgsepError
from graphs.base.progress import Progress, ProgressCallback, silent
from quant.arrays import Array, Doubles
from quant.calibration.statistics import Calibration, InputStatistics, SideStatistics
from quant.graph.files import append, staged, write_graph
from quant.graph.fp16_view import to_fp16_view
from quant.graph.gemms import Weight, load_graph, read_tensor, tensor_of, weights_of
from quant.graph.rewrite import Encoded, encode_weights, scale_of_matmul
from quant.policy import Policy, check_policy
from quant.schemes import numerics
from quant.schemes.awq import AwqPlan, Scaling, scaled_statistics
from quant.schemes.bias import biases_of, corrected, mean_shift
from quant.schemes.schemes import (
    Absmax,
    Quantized,
    SchemeConfig,
    check_calibrated,
    quantize_weight,
    scaling_plan,
    scheme_name,
)
from quant.weight_plan import WeightPlan, plan_of
from quant.weight_table import TABLE_KEY, QuantRow, QuantTable, float_row


def quantize_side(
    src: Path,
    out_dir: Path,
    *,
    scheme: SchemeConfig,
    calibration: Calibration | None = None,
    policy: Policy | None = None,
    progress: ProgressCallback = silent,
) -> QuantTable:
    """Write ``<side>.w8a32.onnx``, ``<side>.w8a16.onnx`` and their shared ``<side>.int8.data`` into ``out_dir``.

    One weight is in memory at a time. The files appear together or not at all.

    Raises:
        UgsepError: an unreadable graph, a calibration that is missing or of another graph, a policy rule that
            matches no weight of the graphs in its folder, a weight with NaN or Inf, a full disk.
    """
    policy = policy or Policy()
    model = load_graph(src)
    side = side_of(model, src)
    check_policy(policy, _graphs_in_folder(src))
    check_calibrated(scheme, calibration)
    statistics = calibration.side(src) if calibration is not None else None
    constants = model.graph.initializers
    weights = weights_of(model)
    keep = keep_float_patterns(model, src)
    plans = {w.name: plan_of(w, side, policy, keep) for w in weights}
    chosen = tuple(w for w in weights if w.kind == "matmul" and plans[w.name].precision == "int8")
    if statistics is not None:
        statistics.check_shapes({w.name: w.shape for w in chosen})
    scaling = scaling_plan(
        scheme, model, chosen, statistics, lambda n: read_tensor(tensor_of(constants[n])), policy.block
    )
    _scale_constants(constants, plans, scaling)
    biases = biases_of(model) if scheme.needs_calibration else {}
    job = _Job(side, scheme, policy.block, statistics, scaling, frozenset(biases))
    with staged(out_dir) as stage:
        rows: list[QuantRow] = []
        encoded: dict[str, Encoded] = {}
        with (stage / job.blob).open("wb") as file:
            for number, weight in enumerate(weights):
                progress(Progress(f"quantize {side}", number, len(weights), weight.name))
                values = read_tensor(tensor_of(constants[weight.name]))
                row, entry, shift = _encode(weight, values, plans[weight.name], job, file)
                rows.append(row)
                if shift is not None:
                    bias = constants[biases[weight.name]]
                    _set(bias, corrected(read_tensor(tensor_of(bias)), shift))
                if entry is not None:
                    encoded[weight.name] = entry
        if not encoded:
            (stage / job.blob).unlink()
        progress(Progress(f"quantize {side}", len(weights), len(weights)))
        samples = calibration.samples_sha256 if calibration is not None else ""
        table = QuantTable(side, scheme_name(scheme), samples, tuple(rows))
        encode_weights(model, encoded)
        ranges = None if statistics is None else _input_ranges(chosen, statistics, scaling)
        write_views(model, stage, f"'{src}'", job.blob, policy, table, ranges)
        files = tuple(sorted(p.name for p in stage.iterdir()))
    return replace(table, files=files)


def quantize_pair(
    user: Path,
    item: Path,
    out_dir: Path,
    *,
    scheme: SchemeConfig,
    calibration: Calibration | None = None,
    policy: Policy | None = None,
    progress: ProgressCallback = silent,
) -> list[QuantTable]:
    """Quantize both graphs of a model as ``quantize_side`` does; the files of both appear together or not at all.

    Raises:
        UgsepError: as in ``quantize_side``, for either graph.
    """
    with staged(out_dir) as stage:
        return [
            quantize_side(src, stage, scheme=scheme, calibration=calibration, policy=policy, progress=progress)
            for src in (user, item)
        ]


@dataclass(frozen=True)
class _Job:
    """What all weights of one graph share."""

    side: str
    scheme: SchemeConfig
    block: int
    statistics: SideStatistics | None
    awq: AwqPlan
    biased: frozenset[str]

    @property
    def blob(self) -> str:
        """Name of the file of int8 and FP16 constants that both views share."""
        return f"{self.side}.int8.data"


def _scale_constants(constants: Mapping[str, ir.Value], plans: Mapping[str, WeightPlan], awq: AwqPlan) -> None:
    """Divide the biases and gains that take awq's factors; weights are scaled when they are encoded."""
    for name, scaling in awq.scalings.items():
        if name not in plans:
            _set(constants[name], scaling.apply(read_tensor(tensor_of(constants[name]))))


def _set(constant: ir.Value, values: Array) -> None:
    constant.const_value = ir.Tensor(values, name=constant.name)


def _input_ranges(weights: Iterable[Weight], statistics: SideStatistics, awq: AwqPlan) -> dict[str, ActivationRange]:
    """Return the calibrated range of the inputs of each weight, which awq may have scaled."""
    found = {}
    for weight in weights:
        seen = scaled_statistics(statistics.of(weight.name), awq.scalings.get(weight.name))
        between = range_between(float(seen.low.min()), float(seen.high.max()))
        if between is not None:
            found[weight.name] = between
    return found


def write_views(
    model: ir.Model,
    stage: Path,
    source: str,
    blob: str,
    policy: Policy,
    table: QuantTable,
    ranges: Mapping[str, ActivationRange] | None = None,
) -> None:
    """Write both typed views of an encoded graph into ``stage``; ``source`` names the graph in messages.

    ``ranges`` are those of the inputs of its int8 weights, None without a calibration.
    """
    text = json.dumps(table.to_json(), sort_keys=True)
    fp16 = model.clone()
    narrow = to_fp16_view(fp16, policy.keep_fp32_ops, source)
    for view, precision, narrowed in ((model, "w8a32", frozenset[str]()), (fp16, "w8a16", narrow)):
        stamps = {"precision": precision, TABLE_KEY: text}
        if ranges is not None:
            stamps[ACTIVATIONS_KEY] = activations_text(ranges)
        write_graph(view, stage / f"{table.graph}.{precision}.onnx", narrowed, blob, **stamps)


def _graphs_in_folder(src: Path) -> Iterable[Path]:
    """Return the graph and the float graphs of the other sides in its folder: a policy covers all of them."""
    names = [src.parent / f"{side}.onnx" for side in ("user", "item", "full")]
    return dict.fromkeys([src, *(p for p in names if p.is_file())])


def _encode(
    weight: Weight, values: Array, plan: WeightPlan, job: _Job, file: IO[bytes]
) -> tuple[QuantRow, Encoded | None, Doubles | None]:
    """Append a weight's constant to the file; returns its row, its location, and the shift of its bias."""
    full = weight.elements * 4

    def row(scheme: str, block: int, sqnr: float, output_sqnr: float | None, size: int, note: str = "") -> QuantRow:
        return QuantRow(
            weight=weight.name,
            graph=job.side,
            kind=weight.kind,
            shape=weight.shape,
            scheme=scheme,
            block=block,
            bits=plan.bits,
            sqnr_db=sqnr,
            output_sqnr_db=output_sqnr,
            fp32_bytes=full,
            quantized_bytes=size,
            reason_if_skipped=plan.reason,
            note=note,
        )

    if plan.precision == "fp32":
        return float_row(weight, job.side, plan.reason), None, None
    if not np.isfinite(values).all():
        raise UgsepError(f"weight '{weight.name}' of '{job.side}' holds NaN or Inf; fix the checkpoint")
    if plan.precision == "fp16":
        with np.errstate(over="ignore"):
            fp16 = values.astype(np.float16)
        if np.isinf(fp16).any():
            raise UgsepError(f"weight '{weight.name}' exceeds the FP16 range; give it int8 or fp32 in the policy")
        offset, length = append(file, fp16)
        sqnr = numerics.sqnr_db(values, fp16.astype(np.float32))
        return row("fp16", 0, sqnr, None, full // 2), Encoded(job.blob, offset, length), None
    if weight.kind == "table":
        done = quantize_weight(Absmax(), values.T, None, 0)  # one scale per row of [V, D]
        offset, length = append(file, done.values.T)
        restored = numerics.dequantize(done.values, done.scale).T
        entry = Encoded(job.blob, offset, length, done.scale[0], 0)
        size = length + done.scale.size * 4
        return row("absmax", 0, numerics.sqnr_db(values, restored), None, size), entry, None
    if job.block and weight.shape[-2] % job.block:
        raise UgsepError(
            f"weight '{weight.name}' has K = {weight.shape[-2]}, not a multiple of block {job.block}; "
            "choose a block that divides it, or keep the weight float by a rule"
        )
    seen = job.statistics.of(weight.name) if job.statistics is not None else None
    scaling = job.awq.scalings.get(weight.name, Scaling())
    biased = seen is not None and weight.name in job.biased
    done, restored = quantize_values(job.scheme, values, seen, job.block, scaling, biased)
    offset, length = append(file, done.values)
    scale, axis, block_size = scale_of_matmul(done.scale, weight.shape[-2])
    shift = None
    if seen is not None and biased:
        shift = mean_shift(values, restored, seen)
        if scaling.columns is not None:
            shift = shift / scaling.columns
    signal, noise = numerics.row_energy(values), numerics.row_energy(np.subtract(values, restored, out=restored))
    sqnr = numerics.ratio_db(signal.sum(), noise.sum())
    output = None
    if seen is not None:
        left = seen.centered() if biased else seen
        output = numerics.ratio_db((signal * seen.moments).sum(), (noise * left.moments).sum())
    note = job.awq.reasons.get(weight.name, "")
    size = length + scale.size * 4
    entry = Encoded(job.blob, offset, length, scale, axis, block_size)
    return row(scheme_name(job.scheme), job.block, sqnr, output, size, note), entry, shift


def quantize_values(
    scheme: SchemeConfig,
    values: Array,
    seen: InputStatistics | None,
    block: int,
    scaling: Scaling,
    biased: bool = False,
) -> tuple[Quantized, Array]:
    """Return the quantized (scaled) weight [K, N] or [T, K, N], and the weight it restores to, unscaled.

    ``biased``: a bias absorbs the mean of the error, so only the inputs' variance counts.
    """
    scaled_seen = scaled_statistics(seen.centered() if biased else seen, scaling) if seen is not None else None
    done = quantize_weight(scheme, np.ascontiguousarray(scaling.apply(values)), scaled_seen, block)
    return done, scaling.undo(numerics.dequantize(done.values, done.scale))
