"""``ugsep inspect``: the contents of a bundle, from its manifest and graphs, without loading an engine."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.table import Table

from engines.backends.built_engine import BuiltEngine
from engines.backends.contract import Availability
from engines.backends.host import host_isa
from engines.backends.table import find_backend
from engines.bundle.bundle import Bundle
from engines.bundle.load import compare_versions
from engines.bundle.manifest import Engine, Manifest, engine_for
from engines.bundle.provenance import tool_versions
from engines.render.byte_sizes import readable_bytes
from engines.render.console import stdout_console
from engines.render.json_text import json_text
from graphs.base.errors import UgsepError
from quant.inspect import inspect_graph

CACHE_BYTES = 64 << 20  # of an example of a cache size


@click.command("inspect")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--json", "as_json", is_flag=True, help="Print everything as JSON, including profiles, tensors and notes."
)
def inspect_command(bundle: Path, as_json: bool) -> None:
    """Show the contents of BUNDLE: engines, their settings and sizes, and the status of every weight."""
    found = describe(bundle)
    if as_json:
        click.echo(json_text(found, indent=1))
    else:
        _show(found)


def describe(bundle: Path) -> dict[str, Any]:
    """Return the contents of a bundle as plain values.

    Sizes are bytes on disk, from the manifest; ``cache_entry_bytes`` is what a server keeps of a user, the state and
    the features it was computed from, None if a row of either has no fixed size. ``sqnr_db`` of a weight is read from
    the quantized graph, None for float weights. ``runs_here`` and ``reason`` come from probing the backend on this
    machine; no engine is loaded.

    Raises:
        UgsepError: the bundle is missing, its manifest is invalid, or a file does not match the manifest.
    """
    manifest = Bundle.open(bundle).manifest
    sqnr = {side: _weight_sqnr(bundle, manifest, side) for side in ("user", "item", "full")}
    engines = [_engine(engine, manifest, sqnr[engine.built.side]) for engine in manifest.engines]
    return {
        "bundle": bundle.name,
        "model": manifest.model,
        "version": manifest.version,
        "opset": manifest.opset,
        "rebuild": manifest.rebuild,
        "bytes": sum(entry.bytes for entry in manifest.files.values()),
        "files": {name: entry.bytes for name, entry in manifest.files.items()},
        "tools": dict(manifest.tools),
        "tools_differ": compare_versions(manifest.tools, tool_versions()),
        "host": {"built_on": dict(manifest.host), "here": {"isa": host_isa()}},
        "calibration_sha256": manifest.calibration,
        "synthetic": manifest.synthetic,
        "engines": engines,
        "cache_entry_bytes": _cache_entry_bytes(engine_for(manifest, "user").built),
        "batching": [{**dataclasses.asdict(t), "speedup": t.speedup} for t in manifest.batching],
        "why": {side: manifest.reasons[side] for side in ("user", "item") if side in manifest.reasons},
    }


def _cache_entry_bytes(user: BuiltEngine) -> int | None:
    rows = [(spec.dtype, spec.shape[1:]) for spec in (*user.inputs, *user.outputs)]
    if any(isinstance(size, str) for _, row in rows for size in row):
        return None
    return sum(np.dtype(dtype).itemsize * math.prod(int(size) for size in row) for dtype, row in rows)


def _weight_sqnr(bundle: Path, manifest: Manifest, side: str) -> dict[str, float]:
    """Return the SQNR in dB of each int8 weight, read from the side's quantized graph if the bundle has one."""
    for variant in ("w8a32", "w8a16"):
        name = f"onnx/{side}.{variant}.onnx"
        if name in manifest.files:
            rows = inspect_graph(bundle / name)
            return {r.weight: r.sqnr_db for r in rows if r.bits == 8 and math.isfinite(r.sqnr_db)}
    return {}


def _engine(engine: Engine, manifest: Manifest, sqnr: dict[str, float]) -> dict[str, Any]:
    built = engine.built
    here = _here(built.backend)
    plain = dataclasses.asdict(built)
    plain["profiles"] = [{"name": p.name, **dataclasses.asdict(p)} for p in built.profiles]
    plain["weights"] = [{**dataclasses.asdict(w), "sqnr_db": sqnr.get(w.name)} for w in built.weights]
    return {
        **plain,
        "directory": engine.directory,
        "chosen": manifest.choice.get(built.side) == engine.directory,
        "runs_here": here.can_run,
        "reason": here.reason,
    }


def _here(backend: str) -> Availability:
    try:
        return find_backend(backend).probe()
    except UgsepError as error:  # a bundle may have engines for a backend unknown to this installation
        return Availability(False, False, str(error))


def _show(found: dict[str, Any]) -> None:
    console = stdout_console()
    origin = "synthetic weights or samples" if found["synthetic"] else "real weights and samples"
    console.print(f"{found['model']}: manifest version {found['version']}, opset {found['opset']}, {origin}")
    console.print(f"{readable_bytes(found['bytes'])} in {len(found['files'])} files; rebuild: {found['rebuild']}")
    built_on = ", ".join(f"{k} {v}" for k, v in sorted(found["host"]["built_on"].items()))
    console.print(f"built on {built_on}, this machine: isa {found['host']['here']['isa']}")
    console.print("built with " + ", ".join(f"{k} {v}" for k, v in sorted(found["tools"].items())))
    if found["tools_differ"]:
        console.print("versions that differ here: " + ", ".join(found["tools_differ"]))
    if entry := found["cache_entry_bytes"]:
        held = CACHE_BYTES // entry
        console.print(
            f"a cached user takes {readable_bytes(entry)}: {readable_bytes(CACHE_BYTES)} hold {held:,} users"
        )
    engines = Table("side", "backend", "precision", "bytes", "serves", "needs", "runs here", "why")
    for e in found["engines"]:
        needs = ", ".join(f"{k} {v}" for k, v in sorted(e["requires"].items()))
        flags = ("yes" if e["chosen"] else "", needs, "yes" if e["runs_here"] else "no")
        engines.add_row(e["side"], e["backend"], e["precision"], readable_bytes(e["bytes"]), *flags, e["reason"])
    console.print(engines)
    for side, reason in found["why"].items():
        console.print(f"why this {side} engine: {reason}")
    for e in found["engines"]:
        settings = ", ".join(f"{k}={v}" for k, v in sorted(e["session"].items()))
        console.print(f"{e['directory']}: {settings or 'no session settings'}")
        for profile in e["profiles"]:
            console.print(f"  profile: {profile['name']}")
        for note in e["notes"]:
            console.print(f"  note: {note}")
    if found["batching"]:
        console.print("requests of several users, states cached, ms: one by one, and in one item call")
        batching = Table("users", "candidates", "one by one", "one call", "speed-up")
        for t in found["batching"]:
            times = (f"{t[name]:.3f}" for name in ("separate_ms", "batched_ms"))
            batching.add_row(str(t["users"]), str(t["candidates"]), *times, f"{t['speedup']:.2f}")
        console.print(batching)
    weights = Table("engine", "weight", "status", "by", "SQNR dB")
    for e in found["engines"]:
        for w in e["weights"]:
            sqnr = "" if w["sqnr_db"] is None else f"{w['sqnr_db']:.1f}"
            weights.add_row(f"{e['backend']} {e['side']}.{e['precision']}", w["name"], w["status"], w["detail"], sqnr)
    console.print(weights)
