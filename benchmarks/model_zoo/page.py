"""The tables of the test bed in docs/third-party-models.md, from the results in docs/model-zoo.json."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.model_zoo.results import Build, Gate, Result
from engines.render.markdown import table, write_section

SECTION = "model zoo"
_HEADER = "# Splitting third-party models\n"
#: Columns of the table of builds: how the gate's name starts, and what the column is called.
_GATES = {
    "split max": "split",
    "quantized SQNR": "SQNR dB",
    "quantized Kendall": "Kendall tau",
    "quantized max": "max probability",
    "identical": "identical",
    "permuted": "permuted",
    "user int8": "user int8 lost",
    "item int8": "item int8 lost",
    "fixtures": "fixtures",
}


def write_tables(page: Path, machine: Mapping[str, str], results: Sequence[Result]) -> None:
    """Write the tables between their markers in the page."""
    write_section(page, SECTION, "\n".join(tables(machine, results)) + "\n", _HEADER)


def tables(machine: Mapping[str, str], results: Sequence[Result]) -> list[str]:
    """Return the lines of the section: what was split, what was not and why, and what was built."""
    done = [r for r in results if r.outcome == "split"]
    stopped = [r for r in results if r.outcome != "split"]
    built = [(r, r.build) for r in results if r.build is not None]
    packages = ", ".join(f"{name} {count}" for name, count in Counter(r.package for r in results).items())
    lines = [f"{len(results)} models ({packages}); {len(done)} split, exported and timed.", ""]
    lines += [", ".join(f"{name} {version}" for name, version in machine.items()), ""]
    heads = ("model", "share", "limit", "measured", "whole ms", "user ms", "item ms", "state B", "float64", "float32",
             "ONNX")  # fmt: skip
    lines += table(heads, [_row(r) for r in done])
    if stopped:
        lines += ["", "Not split, or not exported:", ""]
        lines += table(("model", "outcome", "reason"), [(_name(r), r.outcome, r.reason) for r in stopped], "lll")
    if built:
        passed = sum(b.status == 0 for _, b in built)
        lines += ["", f"Built by `ugsep build`: {len(built)}, of which {passed} passed every gate.", ""]
        lines += table(("model", "outcome", *_GATES.values(), "speed-up", "limit"), [_built(r, b) for r, b in built])
    return lines


def _name(result: Result) -> str:
    return f"{result.model} ({result.package})"


def _row(result: Result) -> tuple[str, ...]:
    return (
        _name(result),
        f"{max(0.0, result.share):.0%}".replace("%", " %"),
        f"{result.limit:.2f}x",
        f"{result.speedup:.2f}x",
        f"{result.whole_ms:.2f}",
        f"{result.user_ms:.2f}",
        f"{result.item_ms:.2f}",
        str(result.state_bytes),
        _small(result.float64),
        _small(result.float32),
        _small(result.onnx),
    )


def _built(result: Result, build: Build) -> tuple[str, ...]:
    outcome = "passed" if build.status == 0 else (build.reason or "a gate failed")
    speeds = (f"{build.speedup:.2f}x", f"{build.limit:.2f}x") if build.gates else ("-", "-")
    return (_name(result), outcome, *(_gate(build.gates, start) for start in _GATES), *speeds)


def _gate(gates: Sequence[Gate], start: str) -> str:
    """Return the worst of the gates of one kind, of all tasks: bold if one failed."""
    found = [g for g in gates if g.name.startswith(start)]
    if not found:
        return "-"
    worst = next((g for g in found if not g.passed), None) or _nearest(found)
    text = "NaN" if worst.value is None else f"{worst.value:.3g}"
    return text if worst.passed else f"**{text}**"


def _nearest(gates: Sequence[Gate]) -> Gate:
    """Return the gate whose value is nearest to its bound."""
    worst = max if gates[0].relation == "<=" else min
    return worst(gates, key=lambda g: g.value or 0.0)


def _small(value: float | None) -> str:
    return "-" if value is None else f"{value:.1e}"
