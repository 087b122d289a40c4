"""The state of a server as JSON, for ``GET /status`` and the page."""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engines.backends.lacking import lacking
from engines.bundle.manifest import engine_for
from engines.serve.core.served_bundle import ServedBundle
from engines.serve.errors import NotReady
from engines.serve.running.context import ServerContext

__all__ = ["status"]


def status(context: ServerContext) -> dict[str, Any]:
    """Return what a server serves and does right now; docs/serving.md describes the keys.

    What is not known yet, or not on this system, is None, 0, or an empty list; no key is ever missing.
    """
    try:
        served: ServedBundle | None = context.slot.current()
    except NotReady:
        served = None
    previous = context.slot.previous()
    scheduler = context.scheduler
    return {
        "model": _model(context, served),
        "previous": None
        if previous is None
        else {"version": previous.version, "loaded_at": round(previous.loaded_at, 3)},
        "gates": [] if served is None else _gates(served.report),
        "engines": [] if served is None else _engines(context, served),
        "traffic": context.window.traffic(),
        "cache": _cache(context, served),
        "queue": {
            "waiting": scheduler.waiting,
            "running": scheduler.running,
            "limit": scheduler.limit,
            "workers": scheduler.workers,
        },
        "batching": _batching(served),
        "swaps": [swap.as_dict() for swap in context.swaps.newest()],
        "misses": context.misses.features(),
        "process": _process(context.started),
    }


def _model(context: ServerContext, served: ServedBundle | None) -> dict[str, Any]:
    state = context.lifecycle.state
    if served is None:
        return {
            "name": context.settings.name,
            "version": "",
            "backend": "",
            "precision": {"user": "", "item": ""},
            "synthetic": False,
            "passed": False,
            "loaded_at": None,
            "state": state,
            "path": str(context.settings.bundle),
        }
    serving = _serving(context, served)
    return {
        "name": served.name,
        "version": served.version,
        "backend": "+".join(dict.fromkeys(engine.built.backend for engine in serving.values())),
        "precision": {side: engine.built.precision for side, engine in serving.items()},
        "synthetic": served.manifest.synthetic,
        "passed": served.manifest.passed,
        "loaded_at": round(served.loaded_at, 3),
        "state": state,
        "path": str(context.settings.bundle),
    }


def _serving(context: ServerContext, served: ServedBundle) -> dict[str, Any]:
    chosen = (context.settings.backend, context.settings.precision)
    return {side: engine_for(served.manifest, side, *chosen) for side in ("user", "item")}


def _gates(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the checks of the build; the report's hash is right, but anybody can write a report and hash it."""
    listed = report.get("targets")
    gates = [gate for gate in listed if isinstance(gate, dict)] if isinstance(listed, list) else []
    return [
        {
            "name": str(gate.get("name", "")),
            "value": _number(gate.get("value")),
            "bound": _number(gate.get("bound")),
            "relation": gate["relation"] if gate.get("relation") in ("<=", ">=") else None,
            "passed": gate.get("passed") is True,
        }
        for gate in gates
    ]


def _engines(context: ServerContext, served: ServedBundle) -> list[dict[str, Any]]:
    serving = {engine.directory for engine in _serving(context, served).values()}
    return [
        {
            "side": engine.built.side,
            "backend": engine.built.backend,
            "precision": engine.built.precision,
            "bytes": engine.built.bytes,
            "chosen": engine.directory in serving,
            "cannot_run": "" if engine.directory in serving else lacking(engine.built),
        }
        for engine in served.manifest.engines
    ]


def _cache(context: ServerContext, served: ServedBundle | None) -> dict[str, Any]:
    if served is None:
        names = ("hits", "misses", "evictions", "users", "bytes")
        return {
            **dict.fromkeys(names, 0),
            "limit": context.settings.cache_bytes,
            "hit_ratio": 0.0,
            "state_bytes_per_user": None,
        }
    info = served.ranker.cache_info()
    split = served.report.get("split")
    return {
        "hits": info.hits,
        "misses": info.misses,
        "evictions": info.evictions,
        "users": info.users,
        "bytes": info.bytes,
        "limit": info.limit,
        "hit_ratio": round(info.hit_ratio, 4),
        "state_bytes_per_user": _number(split.get("state_bytes_per_user")) if isinstance(split, dict) else None,
    }


def _batching(served: ServedBundle | None) -> dict[str, Any]:
    if served is None:
        return {"max_users": 0, "measured": []}
    measured = [
        {"users": timing.users, "candidates": timing.candidates, "speedup": round(timing.speedup, 3)}
        for timing in served.manifest.batching
    ]
    return {"max_users": served.ranker.max_users, "measured": measured}


def _process(started: float) -> dict[str, Any]:
    """Read /proc, because a server has no psutil."""
    try:
        text = Path("/proc/self/status").read_text()
        descriptors: int | None = len(os.listdir("/proc/self/fd")) - 1  # without the one of this listing
    except OSError:
        text, descriptors = "", None
    resident = re.search(r"^VmRSS:\s+(\d+) kB$", text, re.MULTILINE)
    threads = re.search(r"^Threads:\s+(\d+)$", text, re.MULTILINE)
    return {
        "rss_bytes": int(resident[1]) * 1024 if resident else None,
        "uptime_seconds": round(max(0.0, time.time() - started), 3),
        "descriptors": descriptors,
        "threads": int(threads[1]) if threads else None,
    }


def _number(value: object) -> float | int | None:
    """Return a number that JSON can hold, or None."""
    sound = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return value if sound and isinstance(value, (int, float)) else None
