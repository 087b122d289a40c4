"""``report.json``, whose keys docs/architecture.md specifies, and its HTML page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engines.build import report_plots
from engines.build.autoselect import Trial
from engines.build.schemes import SchemeTable
from engines.bundle.manifest import BatchTiming, Engine
from engines.bundle.report_file import REPORT
from engines.recipes.recipe import Recipe
from engines.render.html import render
from engines.render.json_text import json_text
from engines.verify.agreement import Agreement
from engines.verify.prove import Proof
from graphs.split.proof import SplitProof
from graphs.split.split import Split
from quant.weight_table import QuantTable


@dataclass(frozen=True)
class Findings:
    """The findings of a build: the split, the table of weights per side, the engines and their proof.

    ``schemes`` compares quantization schemes, if the recipe asks for it and there are requests; ``batching`` has the
    times of requests scored one by one and in one item call.
    """

    split: Split
    random_proof: SplitProof
    tables: Mapping[str, QuantTable]
    engines: Sequence[Engine]
    proof: Proof
    calibration_sha256: str
    synthetic: bool
    notes: Sequence[str] = ()
    tried: Sequence[Trial] = ()
    schemes: SchemeTable | None = None
    batching: Sequence[BatchTiming] = ()


def report_document(name: str, recipe: Recipe, found: Findings) -> dict[str, Any]:
    """Return the contents of ``report.json``; the parity blocks hold the worst figures of all tasks."""
    tables = [row for table in found.tables.values() for row in table.rows]
    split = found.split
    serving = found.engines[:2]  # user and item come first, then engines for other machines
    return {
        "model": name,
        "backend": "+".join(dict.fromkeys(e.built.backend for e in serving)),
        "precision": {e.built.side: e.built.precision for e in serving},
        "passed": found.proof.passed,
        "synthetic": found.synthetic,
        "parity": {"split": _worst(found.proof.split), "quant": _worst(found.proof.quant)},
        "parity_by_task": {
            "split": {task: a.as_dict() for task, a in found.proof.split.items()},
            "quant": {task: a.as_dict() for task, a in found.proof.quant.items()},
        },
        "auc": {variant: dict(by_task) for variant, by_task in found.proof.auc.items()},
        "latency": found.proof.latency[-1].as_dict(),
        "latency_by_candidates": [r.as_dict() for r in found.proof.latency],
        "batching": [{**asdict(t), "speedup": t.speedup} for t in found.batching],
        "threads": recipe.serving.threads,
        "weights": {
            "fp32_bytes": sum(r.fp32_bytes for r in tables),
            "quantized_bytes": sum(r.quantized_bytes for r in tables),
        },
        "policy": list(recipe.quantization.policy.get("weights", ())),
        "schemes": found.schemes.to_json() if found.schemes is not None else None,
        "split": {
            "user": asdict(split.user_cost),
            "item": asdict(split.item_cost),
            "full": asdict(split.full_cost),
            "reusable_share": split.reusable_share,
            "hoisted": [asdict(h) for h in split.hoisted],
            "random_rows": asdict(found.random_proof),
            "state_bytes_per_user": _state_bytes(serving[0]),
            "fp32_state_bytes_per_user": split.state_bytes,
            "state": [{"name": s.name, "shape": list(s.row_shape), "bytes": s.bytes_per_user} for s in split.state],
        },
        "engines": [_engine(e) for e in found.engines],
        "calibration_sha256": found.calibration_sha256,
        "targets": [check.as_dict() for check in found.proof.checks],
        "notes": list(found.notes),
        "tried": [{**asdict(t), "p50_ms": t.p50_ms if math.isfinite(t.p50_ms) else None} for t in found.tried],
    }


def _state_bytes(user: Engine) -> int:
    """Return the bytes of one user's state as the user engine returns it."""
    return sum(math.prod(int(n) for n in o.shape[1:]) * np.dtype(o.dtype).itemsize for o in user.built.outputs)


def _worst(by_task: Mapping[str, Agreement]) -> dict[str, float]:
    blocks = [a.as_dict() for a in by_task.values()]
    lowest = ("sqnr_db", "kendall_tau", "top_k_overlap", "rows")
    return {key: (min if key in lowest else max)(b[key] for b in blocks) for key in blocks[0]}


def _engine(engine: Engine) -> dict[str, Any]:
    built = engine.built
    statuses: dict[str, int] = {}
    for weight in built.weights:
        statuses[weight.status] = statuses.get(weight.status, 0) + 1
    return {
        "backend": built.backend,
        "side": built.side,
        "precision": built.precision,
        "bytes": built.bytes,
        "weights": statuses,
        "weight_statuses": [asdict(weight) for weight in built.weights],
        "figures": dict(built.figures),
        "session": dict(built.session),
        "notes": list(built.notes),
    }


def write_report(folder: Path, document: Mapping[str, Any], found: Findings) -> None:
    """Write ``report.json`` and the self-contained ``report.html`` into ``folder``."""
    (folder / REPORT).write_text(json_text(document, indent=1) + "\n", encoding="utf-8")
    rows = [row for table in found.tables.values() for row in table.rows]
    drawings = {
        "errors": report_plots.error_distribution(found.proof.errors, 1e-5),
        "latency": report_plots.latency_bars(found.proof.latency),
        "shares": report_plots.time_shares(found.proof.latency),
        "sqnr": report_plots.weight_sqnr([(f"{r.graph}: {r.weight}", r.sqnr_db) for r in rows if r.bits == 8]),
    }
    values = {
        "report": document,
        "checks": found.proof.checks,
        "drawings": drawings,
        "rows": rows,
        "latency": found.proof.latency,
    }
    (folder / "report.html").write_text(render("report.html", values), encoding="utf-8")
