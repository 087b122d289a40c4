"""A hundred new bundles under load, one in ten of them corrupt."""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.serving.campaigns.bench import PATIENT, Bench, Result, result
from benchmarks.serving.campaigns.phases import rate_of, saturated
from benchmarks.serving.load.arrivals import poisson, uniform_picks
from benchmarks.serving.load.http_load import open_loop, run
from benchmarks.serving.load.pool import bundle_version, make_pool
from benchmarks.serving.load.tally import Tally
from benchmarks.serving.servers.ours import our_server
from benchmarks.serving.servers.process import Server, get, started, wait_until
from engines.bundle.files import MANIFEST
from engines.bundle.manifest import engine_for, read_manifest
from engines.verify.checks import Check

CANDIDATES, USERS = 64, 64
_EVERY = 10  # one in so many is corrupt


def swaps(bench: Bench, other: Path) -> Result:
    """Let a link point to one bundle after the other while a server watches it.

    Args:
        bench: its bundle is the first.
        other: a bundle of the same inputs with other weights.

    Raises:
        UgsepError: the server does not start, or does not look at a new bundle in time.
    """
    number = 10 if bench.short else 100
    folder = bench.work / "swaps"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    link = folder / "current"
    sources = [bench.bundle.resolve(), other.resolve()]
    point(link, copied(sources[0], folder / "0"))
    pool = make_pool(sources, USERS if not bench.short else 8, CANDIDATES, seed=bench.seed)
    server = our_server(link, bench.work, bench.server_cores, (*PATIENT, "--watch-seconds", "0.1"), "swaps")
    failures: list[BaseException] = []
    events: list[dict[str, Any]] = []
    over = threading.Event()
    with started(server):
        bench.pin_generator()
        rate = 0.3 * rate_of(saturated(server.http, pool, bench.long(5, 0.5), 4))
        before = server.resident()

        def act() -> None:
            try:
                serving = 0
                for step in range(1, number + 1):
                    damage = CORRUPTIONS[(step // _EVERY - 1) % len(CORRUPTIONS)] if step % _EVERY == 0 else None
                    events.append(_swap(server, link, folder / str(step), sources, serving, damage))
                    serving = serving if damage else 1 - serving
            except BaseException as error:  # raised again by the campaign
                failures.append(error)
            finally:
                over.set()

        actor = threading.Thread(target=act)
        actor.start()
        times = poisson(rate, 3600 if not bench.short else 120)
        tally: Tally = run(open_loop(server.http, pool, uniform_picks(pool, len(times)), times, stop=over.is_set))
        actor.join()
        after, counted = server.resident(), outcomes(server)
    if failures:
        raise failures[0]
    corrupt = number // _EVERY
    figures: dict[str, Any] = {
        "rate": rate,
        "run": tally.summary(),
        "outcomes": counted,
        "seconds": [event["seconds"] for event in events],
        "refusals": [event for event in events if event["damage"]],
        "rss_bytes": {"before": before, "after": after},
    }
    checks = [
        Check("requests without scores", tally.planned - tally.count(200), 0),
        Check("wrong scores, or scores of a corrupt bundle", tally.wrong, 0),
        Check("bundles that serve", counted.get("serving", 0), number - corrupt, ">="),
        Check("corrupt bundles refused", counted.get("refused", 0), corrupt, ">="),
        Check("corrupt bundles that served", counted.get("serving", 0) - (number - corrupt), 0),
        Check("versions seen", len(tally.versions), len(sources), ">="),
    ]
    return result(bench, "swaps", checks, figures)


def _swap(
    server: Server, link: Path, folder: Path, sources: list[Path], serving: int, damage: Damage | None
) -> dict[str, Any]:
    """Publish the bundle that is not serving, damaged or not, and wait until the server decided."""
    target = sources[1 - serving]
    copied(target, folder)
    if damage is not None:
        damage(folder, sources[serving])
    before, began = outcomes(server), time.perf_counter()
    point(link, folder)
    wait_until(lambda: outcomes(server) != before, 120, f"a decision on {folder.name}")
    took = round(time.perf_counter() - began, 3)
    if damage is None:
        assert bundle_version(folder) == bundle_version(target)
    return {"step": folder.name, "damage": damage.__name__ if damage is not None else "", "seconds": took}


def outcomes(server: Server) -> dict[str, int]:
    """Return how many bundles the server took and refused."""
    text = get(server.http, "/metrics")[1].decode()
    found = re.findall(r'^ugsep_swaps_total\{outcome="([^"]+)"\} (\S+)$', text, re.MULTILINE)
    return {outcome: int(float(count)) for outcome, count in found}


def point(link: Path, target: Path) -> None:
    """Let the link point to another folder, at once."""
    fresh = link.with_name(f"{link.name}.new")
    fresh.symlink_to(target.name)
    os.replace(fresh, link)


def copied(bundle: Path, folder: Path) -> Path:
    """Copy a bundle; an older copy two steps back is removed, as a deployment would."""
    shutil.copytree(bundle, folder)
    if folder.name.isdigit() and int(folder.name) >= 3:
        shutil.rmtree(folder.with_name(str(int(folder.name) - 3)), ignore_errors=True)
    return folder


Damage = Callable[[Path, Path], None]


def _item_file(bundle: Path) -> str:
    """Return the largest file of the item engine that serves."""
    engine = engine_for(read_manifest(bundle), "item")
    names = [f"{engine.directory}/{name}" for name in engine.built.files]
    return max(names, key=lambda name: (bundle / name).stat().st_size)


def truncated_engine(bundle: Path, other: Path) -> None:
    """Cut the last bytes off an engine."""
    del other
    file = bundle / _item_file(bundle)
    os.truncate(file, file.stat().st_size - 64)


def changed_byte(bundle: Path, other: Path) -> None:
    """Change one byte of an engine."""
    del other
    file = bundle / _item_file(bundle)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x40
    file.write_bytes(content)


def missing_engine(bundle: Path, other: Path) -> None:
    """Remove an engine."""
    del other
    (bundle / _item_file(bundle)).unlink()


def broken_manifest(bundle: Path, other: Path) -> None:
    """Cut the manifest in half."""
    del other
    file = bundle / MANIFEST
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def other_engine(bundle: Path, other: Path) -> None:
    """Take the item engine of another model, with sound hashes: only the fixtures can tell."""
    documents = [json.loads((folder / MANIFEST).read_text()) for folder in (bundle, other)]
    ours, theirs = (engine_for(read_manifest(folder), "item").directory for folder in (bundle, other))
    shutil.rmtree(bundle / ours)
    shutil.copytree(other / theirs, bundle / theirs)
    mine, others = documents
    files = {name: entry for name, entry in mine["files"].items() if not name.startswith(f"{ours}/")}
    mine["files"] = files | {n: e for n, e in others["files"].items() if n.startswith(f"{theirs}/")}
    mine["engines"] = [engine for engine in mine["engines"] if engine["directory"] != ours]
    mine["engines"] += [engine for engine in others["engines"] if engine["directory"] == theirs]
    mine["choice"] = {**mine["choice"], "item": theirs}
    (bundle / MANIFEST).write_text(json.dumps(mine, indent=1, sort_keys=True) + "\n")


CORRUPTIONS: tuple[Damage, ...] = (other_engine, changed_byte, truncated_engine, missing_engine, broken_manifest)
