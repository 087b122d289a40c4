"""The process that fuzzes one parser, or gives it one input: ``python -m ...child ORDER``, an ``Order`` as JSON."""

from __future__ import annotations

import ctypes
import importlib
import json
import mmap
import random
import resource
import signal
import struct
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path

from benchmarks.reliability.fuzz.guided.order import COUNTS, DEFECTS, RESULTS, ROOT, Order
from benchmarks.reliability.fuzz.guided.parser import Parser
from benchmarks.reliability.fuzz.guided.verdict import judged
from benchmarks.reliability.fuzz.judge import Verdict

__all__: list[str] = []

_PDEATHSIG = 1  # of Linux: a signal when the parent dies
#: Of the mutations; the others are libFuzzer's own, of bytes and of what it saw compared.
_STRUCTURED = 0.8
#: Of those, the ones of a sound input: the corpus drifts away from sound ones, which reach the last checks.
_ANEW = 0.3


def main() -> None:
    """Carry out the order."""
    order = Order(**json.loads(sys.argv[1]))
    ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGKILL)  # nobody is left to count what it finds
    with tempfile.TemporaryDirectory() as scratch:
        if order.replay is None:
            _fuzz(order, Path(scratch))
        else:
            _replay(order, Path(order.replay), Path(scratch))


def _parser(order: Order, scratch: Path) -> Parser:
    made: Parser = getattr(importlib.import_module(order.module), order.factory)(scratch)
    # The commands would print a warning beside their one line. Those of imports are not the parser's.
    warnings.simplefilter("error")
    return made


def _replay(order: Order, file: Path, scratch: Path) -> None:
    data = file.read_bytes()
    parser = _parser(order, scratch)
    used = int(resource.getrusage(resource.RUSAGE_SELF).ru_utime)
    resource.setrlimit(resource.RLIMIT_CPU, (used + order.seconds, used + order.seconds + 5))
    print(json.dumps(asdict(judged(parser, data))))


def _fuzz(order: Order, scratch: Path) -> None:
    import atheris

    with atheris.instrument_imports(include=_packages(order), exclude=_unwatched(order)):
        parser = _parser(order, scratch)
    folder = Path(order.folder)
    seeds = scratch / "seeds"
    seeds.mkdir()
    for number, seed in enumerate(parser.seeds):
        (seeds / str(number)).write_bytes(seed)
    count, keep = _counter(folder / COUNTS), _keeper(folder / DEFECTS)

    def one(data: bytes) -> None:
        verdict = judged(parser, data)
        count(verdict.result)
        if verdict.result == "defect":
            keep(data, verdict)

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if rng.random() < _STRUCTURED:
            try:
                changed = parser.mutate(rng.choice(parser.seeds) if rng.random() < _ANEW else bytes(data), rng)
                if len(changed) <= most:
                    return changed
            except Exception:  # the input is not of the format any more: its bytes can still be changed
                return bytes(atheris.Mutate(data, most))
        return bytes(atheris.Mutate(data, most))

    flags = [*order.flags, str(folder / "corpus"), str(seeds)]
    atheris.Setup([sys.argv[0], *flags], one, custom_mutator=mutate)
    atheris.Fuzz()  # ends the process


def _packages(order: Order) -> list[str]:
    return sorted({Path(path).parts[0] for path in order.watched})


def _unwatched(order: Order) -> list[str]:
    """Return the modules of the watched packages that are not watched themselves: atheris takes whole packages."""
    found = []
    for package in _packages(order):
        for file in sorted((ROOT / package).rglob("*.py")):
            path = file.relative_to(ROOT)
            if not any(path.is_relative_to(watched) for watched in order.watched):
                found.append(".".join(path.with_suffix("").parts).removesuffix(".__init__"))
    return found


def _counter(path: Path) -> Callable[[str], None]:
    """Return a function that counts a result in a file that is whole even if this process dies in the next call."""
    layout = struct.Struct(f"<{len(RESULTS)}Q")
    path.write_bytes(bytes(layout.size))
    with path.open("r+b") as file:
        counts = mmap.mmap(file.fileno(), layout.size)

    def count(result: str) -> None:
        values = list(layout.unpack_from(counts))
        values[RESULTS.index(result)] += 1
        layout.pack_into(counts, 0, *values)

    return count


def _keeper(folder: Path) -> Callable[[bytes, Verdict], None]:
    """Return a function that keeps the first input of each kind of defect."""
    known = {json.loads(file.read_text())["kind"] for file in folder.glob("*.json")}

    def keep(data: bytes, verdict: Verdict) -> None:
        if verdict.kind not in known:
            known.add(verdict.kind)
            name = sha256(data).hexdigest()[:16]
            (folder / f"{name}.input").write_bytes(data)
            (folder / f"{name}.json").write_text(json.dumps({"kind": verdict.kind, "detail": verdict.detail}))

    return keep


if __name__ == "__main__":
    main()
