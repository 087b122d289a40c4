"""The result as a self-contained page and as a section of a Markdown file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from engines.bench import plots
from engines.bench.findings import Size, counted, headline, standoffs
from engines.bench.result import BenchResult, document
from engines.bench.run import Standing, Timing
from engines.render.byte_sizes import readable_bytes
from engines.render.html import render
from engines.render.json_text import json_text
from engines.render.markdown import table, write_section
from engines.verify.agreement import EXACT_DB

JSON, HTML = "bench.json", "bench.html"
_HEADER = """# Benchmarks

Written by `ugsep bench BUNDLE --markdown FILE`; every section is one interleaved run on one machine. For whole
models, the user's row is repeated for every candidate beforehand, untimed. Each contender's scores were compared with
the bundle's FP32 graph before it was timed. Ratios carry over to other machines better than times.
"""


def write_result(folder: Path, result: BenchResult) -> None:
    """Write ``bench.json`` and ``bench.html`` into ``folder``, which is created if missing."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / JSON).write_text(json_text(document(result), indent=1) + "\n", encoding="utf-8")
    (folder / HTML).write_text(page(result), encoding="utf-8")


def page(result: BenchResult) -> str:
    """Return the HTML page: summary, plots, tables."""
    threads = list(dict.fromkeys(s.threads for s in result.sizes))
    drawings = {
        "latency": [plots.latency_over_candidates(result, t) for t in threads],
        "speedup": [
            plots.speedup_over_candidates(result, t) for t in threads if any(s.baseline for s in result.sizes)
        ],
        "roofline": [plots.roofline(result, t) for t in threads],
        "ratios": plots.speedup_over_ratio(result.ratios) if result.ratios else "",
    }
    values = {
        "r": result,
        "threads": threads,
        "drawings": drawings,
        "series": series,
        "headline": headline,
        "standoffs": standoffs,
    }
    filters: dict[str, Callable[..., str]] = {
        "ms": _ms, "decibels": _decibels, "per_second": _per_second, "label": label, "counted": counted,
    }  # fmt: skip
    return render("bench.html", values, filters)


def series(result: BenchResult, threads: int) -> list[tuple[Standing, str, list[Timing]]]:
    """Return one row per contender and variant: ours, then the baselines, fastest at the largest N first."""
    rows = []
    for standing in sorted(
        result.measured.standings, key=lambda s: (not s.chosen, not s.ours, _largest(result, s, threads))
    ):
        found = [t for t in result.measured.timings if t.threads == threads and t.name == standing.name]
        for variant in dict.fromkeys(t.variant for t in found):
            rows.append((standing, variant, [t for t in found if t.variant == variant]))
    return rows


def _largest(result: BenchResult, standing: Standing, threads: int) -> float:
    """Return the p50 of a whole request at the largest N."""
    found = [t for t in result.measured.timings if t.threads == threads and t.name == standing.name]
    requests = [t for t in found if t.variant in ("whole", "cold")]
    return max(requests, key=lambda t: t.candidates).ms.p50 if requests else float("inf")


def markdown_section(result: BenchResult) -> str:
    """Return the result as Markdown: summary, times per thread count, ratios, what was left out, the command."""
    machine = result.machine
    lines = [f"## {result.model}", "", *(f"- {s}" for s in result.sentences), ""]
    lines += [
        f"{machine.processor} ({machine.isa}), {machine.cores} cores; {_versions(result)}; "
        f"{result.settings.rounds} rounds.",
        "",
    ]
    for p in result.measured.peaks:
        rates = f"{p.gemm_gflops:.0f} GFLOP/s FP32 GEMM ({p.gemm_by}), {p.copy_gb_s:.1f} GB/s copy"
        lines += [f"Measured peak, {counted(p.threads)}: {rates}.", ""]
    if not machine.quiet:
        lines += [f"The machine was not idle: load average {machine.load:.1f} before the run.", ""]
    for at in headline(result.sizes):
        if at.baseline:
            lines += [*_ours(result, at), ""]
    for threads in dict.fromkeys(s.threads for s in result.sizes):
        lines += [*_times_table(result, threads), ""]
    if result.ratios:
        lines += [*_ratio_table(result), ""]
    for name, reason in result.measured.left_out.items():
        lines.append(f"- Left out: {name}: {reason}")
    lines += ["", "Command:", "", f"    {result.command}", ""]
    return "\n".join(lines)


def write_markdown(path: Path, result: BenchResult) -> None:
    """Write the result into the model's section of a Markdown file."""
    write_section(path, result.model, markdown_section(result), _HEADER)


def _versions(result: BenchResult) -> str:
    shown = ("torch", "onnxruntime", "openvino")
    return ", ".join(f"{name} {result.machine.tools[name]}" for name in shown if name in result.machine.tools)


def _times_table(result: BenchResult, threads: int) -> list[str]:
    sizes = result.settings.candidates
    heads = ["contender", *(f"N = {n}" for n in sizes), "p99", "candidates/s", "GFLOP/s", "weights GB/s", "memory"]
    rows = []
    for standing, variant, timings in series(result, threads):
        by = {t.candidates: t for t in timings}
        last = by[max(by)]
        name = f"**{standing.name}**" if standing.chosen else standing.name
        rows.append(
            [
                name if variant == "whole" else f"{name}, {label(variant)}",
                *(_ms(by[n].ms.p50) if n in by else "-" for n in sizes),
                _ms(last.ms.p99),
                _per_second(last),
                f"{last.gflops:.3g}",
                f"{last.weight_gb_s:.3g}",
                readable_bytes(standing.memory_bytes) if standing.memory_bytes is not None else "-",
                _decibels(standing.quality.sqnr_db),
            ]
        )
    title = f"p50 in milliseconds, {counted(threads)} (p99 at the largest N; memory with 1 thread):"
    return [title, "", *table([*heads, "SQNR dB"], rows)]


def _ours(result: BenchResult, at: Size) -> list[str]:
    title = (
        f"Our pairs (user + item engine) against {at.baseline} ({_ms(at.baseline_ms)} ms) at N = {at.candidates}, "
        f"{counted(at.threads)}, FLOP limit {at.limit:.2f}:"
    )
    heads = ("pair", "role", "user computed ms", "times as fast", "user cached ms", "times as fast")
    rows = [
        (o.name, o.role, _ms(o.ms), f"{o.speedup:.2f}", _ms(o.cached_ms), f"{o.cached_speedup:.2f}")
        for o in standoffs(result.measured, at)
    ]
    return [title, "", *table(heads, rows, "llrrrr")]


def label(variant: str) -> str:
    """Return what a variant does, in words."""
    return {
        "whole": "whole model", "cold": "user computed", "cached": "user cached", "user": "user engine alone",
        "item": "item engine alone",
    }[variant]  # fmt: skip


def _ratio_table(result: BenchResult) -> list[str]:
    first = result.ratios[0]
    title = (
        f"Speed-up over the ratio of user to item tokens, N = {first.candidates}, {counted(first.threads)}: "
        "RankMixer, random weights, width 288, two layers, user computed. "
        "'Same engine' is ONNX Runtime FP32 whole over split, which the FLOP limit bounds."
    )
    heads = (
        "user + item tokens", "limit", "same engine", "share of limit", "fastest baseline", "our fastest pair",
        "baseline over ours",
    )  # fmt: skip
    rows = [
        (
            f"{p.user_tokens} + {p.item_tokens}",
            f"{p.limit:.2f}",
            f"{p.speedup:.2f}",
            f"{p.speedup / p.limit:.0%}",
            f"{p.baseline} {_ms(p.baseline_ms)} ms",
            f"{p.best} {_ms(p.best_ms)} ms",
            f"{p.best_speedup:.2f}",
        )
        for p in result.ratios
    ]
    return [title, "", *table(heads, rows, "lrrrllr")]


def _per_second(timing: Timing) -> str:
    return "-" if timing.variant == "user" else f"{timing.candidates_per_s:,.0f}"


def _decibels(value: float) -> str:
    return "equal" if value >= EXACT_DB else f"{value:.1f}"


def _ms(value: float) -> str:
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 100 else f"{value:.0f}"
