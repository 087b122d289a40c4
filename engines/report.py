"""``report.json`` (keys are a contract, docs/architecture.md) and the page that shows it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import jinja2

from engines import plots
from engines.agreement import Agreement
from engines.backend import Array
from engines.gates import Target
from engines.latency import RequestLatency
from engines.manifest import Engine
from engines.recipe import Gates, Recipe
from graphs.errors import UgsepError
from graphs.split import Split
from quant.weights import QuantTable

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Findings:
    """All that the stages of a build found out; ``errors`` are score differences by variant, for the plot."""

    split: Split
    tables: Mapping[str, QuantTable]
    engines: Sequence[Engine]
    split_parity: Mapping[str, Agreement]
    quant_parity: Mapping[str, Agreement]
    auc: Mapping[str, Mapping[str, float]]
    latency: Sequence[RequestLatency]
    targets: Sequence[Target]
    errors: Mapping[str, Array]
    calibration_sha256: str
    synthetic: bool
    notes: Sequence[str] = field(default_factory=tuple)


def latency_targets(gates: Gates, latency: RequestLatency) -> list[Target]:
    """Return the latency targets a recipe sets; a bound of 0 sets none."""
    targets = []
    size = f"N = {latency.candidates}"
    if gates.fraction_of_limit:
        targets.append(
            Target(
                f"fraction of the speed-up limit, {size}", latency.fraction_of_limit, gates.fraction_of_limit, ">="
            )
        )
    if gates.request_p99_ms:
        targets.append(Target(f"request p99 ms, {size}", latency.request.p99, gates.request_p99_ms))
    return targets


def report_document(name: str, recipe: Recipe, found: Findings) -> dict[str, Any]:
    """Return ``report.json`` as a mapping; with several tasks the parity blocks hold the worst of each figure."""
    tables = [row for table in found.tables.values() for row in table.rows]
    split = found.split
    return {
        "model": name,
        "backend": recipe.serving.backend,
        "precision": dict(recipe.serving.precision),
        "passed": all(t.passed for t in found.targets),
        "synthetic": found.synthetic,
        "parity": {"split": _worst(found.split_parity), "quant": _worst(found.quant_parity)},
        "parity_by_task": {
            "split": {task: a.as_dict() for task, a in found.split_parity.items()},
            "quant": {task: a.as_dict() for task, a in found.quant_parity.items()},
        },
        "auc": {variant: dict(by_task) for variant, by_task in found.auc.items()},
        "latency": found.latency[-1].as_dict(),
        "latency_by_candidates": [r.as_dict() for r in found.latency],
        "threads": recipe.serving.threads,
        "weights": {
            "fp32_bytes": sum(r.fp32_bytes for r in tables),
            "quantized_bytes": sum(r.quantized_bytes for r in tables),
        },
        "split": {
            "user": asdict(split.user_cost),
            "item": asdict(split.item_cost),
            "reusable_share": split.reusable_share,
            "state_bytes_per_user": split.state_bytes,
            "state": [{"name": s.name, "shape": list(s.row_shape), "bytes": s.bytes_per_user} for s in split.state],
        },
        "engines": [_engine(e) for e in found.engines],
        "calibration_sha256": found.calibration_sha256,
        "targets": [{"name": t.name, "value": t.value, "bound": t.bound, "passed": t.passed} for t in found.targets],
        "notes": list(found.notes),
    }


def _worst(by_task: Mapping[str, Agreement]) -> dict[str, float]:
    blocks = [a.as_dict() for a in by_task.values()]
    lowest = ("sqnr_db", "kendall_tau", "top_k_overlap", "rows")
    return {key: (min if key in lowest else max)(b[key] for b in blocks) for key in blocks[0]}


def _engine(engine: Engine) -> dict[str, Any]:
    built = engine.built
    fates: dict[str, int] = {}
    for weight in built.weights:
        fates[weight.fate] = fates.get(weight.fate, 0) + 1
    return {
        "backend": built.backend,
        "side": built.side,
        "precision": built.precision,
        "bytes": built.bytes,
        "weights": fates,
        "figures": dict(built.figures),
        "session": dict(built.session),
        "notes": list(built.notes),
    }


def write_report(folder: Path, document: Mapping[str, Any], found: Findings) -> None:
    """Write ``report.json`` and the self-contained ``report.html`` into ``folder``."""
    (folder / "report.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    rows = [row for table in found.tables.values() for row in table.rows]
    drawings = {
        "errors": plots.error_distribution(found.errors, 1e-5),
        "latency": plots.latency_bars(found.latency),
        "shares": plots.time_shares(found.latency),
        "sqnr": plots.weight_sqnr([(f"{r.graph}: {r.weight}", r.sqnr_db) for r in rows if r.bits == 8]),
    }
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    environment.filters["bytes"] = readable_bytes
    page = environment.get_template("report.html").render(
        report=document, targets=found.targets, drawings=drawings, rows=rows, latency=found.latency
    )
    (folder / "report.html").write_text(page, encoding="utf-8")


def read_report(bundle: Path) -> dict[str, Any]:
    """Return a bundle's ``report.json``.

    Raises:
        UgsepError: it is missing or not JSON.
    """
    path = bundle / "report.json"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UgsepError(f"{path}: no readable report ({error}); build the bundle again") from error
    if not isinstance(document, dict):
        raise UgsepError(f"{path}: not a JSON object; build the bundle again")
    return document


def readable_bytes(count: float) -> str:
    """Return a byte count with a binary unit: ``1.5 MiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError("unreachable: the loop returns at GiB")
