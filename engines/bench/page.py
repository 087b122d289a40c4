"""The result as a self-contained page and as a section of a Markdown file."""

from __future__ import annotations

from pathlib import Path

import jinja2

from engines.bench import plots
from engines.bench.findings import Size, counted, headline, standoffs
from engines.bench.result import BenchResult, document
from engines.bench.run import Standing, Timing
from engines.build.report import TEMPLATES
from engines.render.byte_sizes import readable_bytes
from engines.render.json_text import json_text
from engines.verify.agreement import EXACT_DB

JSON, HTML = "bench.json", "bench.html"
_HEADER = """# Benchmarks

Written by `ugsep bench BUNDLE --markdown FILE`; every section is one interleaved run on one machine. Whole
models get the user's row repeated for every candidate beforehand. Each contender's scores were compared with the
bundle's FP32 graph before it was timed. Ratios travel better between machines than times.
"""


def write_result(folder: Path, result: BenchResult) -> None:
    """Write ``bench.json`` and ``bench.html`` into ``folder``, which is made where it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / JSON).write_text(json_text(document(result), indent=1) + "\n", encoding="utf-8")
    (folder / HTML).write_text(page(result), encoding="utf-8")


def page(result: BenchResult) -> str:
    """Return the HTML page: words first, then plots, then every number."""
    threads = list(dict.fromkeys(s.threads for s in result.sizes))
    drawings = {
        "latency": [plots.latency_over_candidates(result, t) for t in threads],
        "speedup": [
            plots.speedup_over_candidates(result, t) for t in threads if any(s.baseline for s in result.sizes)
        ],
        "roofline": [plots.roofline(result, t) for t in threads],
        "ratios": plots.speedup_over_ratio(result.ratios) if result.ratios else "",
    }
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    environment.filters["bytes"] = readable_bytes
    environment.filters["ms"] = _ms
    environment.filters["decibels"] = _decibels
    environment.filters["per_second"] = _per_second
    environment.filters["label"] = label
    environment.filters["counted"] = counted
    environment.globals["series"] = series
    environment.globals["headline"] = headline
    environment.globals["standoffs"] = standoffs
    html: str = environment.get_template("bench.html").render(r=result, threads=threads, drawings=drawings)
    return html


def series(result: BenchResult, threads: int) -> list[tuple[Standing, str, list[Timing]]]:
    """Return one row per contender and variant: ours and the baselines, fastest at the largest N first."""
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
    """Return the result as Markdown: words, one table per thread count, the ratios, who was left out, the command."""
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
        lines += [f"The machine was not quiet: load average {machine.load:.1f} before the run.", ""]
    for at in headline(result.sizes):
        if at.baseline:
            lines += [*_ours(result, at), ""]
    for threads in dict.fromkeys(s.threads for s in result.sizes):
        lines += [*_table(result, threads), ""]
    if result.ratios:
        lines += [*_ratio_table(result), ""]
    for name, reason in result.measured.left_out.items():
        lines.append(f"- Left out: {name}: {reason}")
    lines += ["", "Command:", "", f"    {result.command}", ""]
    return "\n".join(lines)


def write_markdown(path: Path, result: BenchResult) -> None:
    """Put the result's section into a Markdown file, in the place of an older one of the same model."""
    begin, end = f"<!-- begin {result.model} -->", f"<!-- end {result.model} -->"
    text = path.read_text(encoding="utf-8") if path.exists() else _HEADER
    section = f"{begin}\n{markdown_section(result)}{end}\n"
    if begin in text and end in text:
        before, after = text.split(begin, 1)[0], text.split(end, 1)[1].lstrip("\n")
        text = before + section + after
    else:
        text = f"{text.rstrip()}\n\n{section}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _versions(result: BenchResult) -> str:
    shown = ("torch", "onnxruntime", "openvino")
    return ", ".join(f"{name} {result.machine.tools[name]}" for name in shown if name in result.machine.tools)


def _table(result: BenchResult, threads: int) -> list[str]:
    sizes = result.settings.candidates
    heads = "".join(f" N = {n} |" for n in sizes)
    lines = [
        f"p50 in milliseconds, {counted(threads)} (p99 at the largest N; memory with 1 thread):",
        "",
        f"| contender |{heads} p99 | candidates/s | GFLOP/s | weights GB/s | memory | SQNR dB |",
        "|---|" + "---:|" * (len(sizes) + 6),
    ]
    for standing, variant, timings in series(result, threads):
        by = {t.candidates: t for t in timings}
        last = by[max(by)]
        cells = "".join(f" {_ms(by[n].ms.p50) if n in by else '-'} |" for n in sizes)
        memory = readable_bytes(standing.memory_bytes) if standing.memory_bytes is not None else "-"
        name = f"**{standing.name}**" if standing.chosen else standing.name
        lines.append(
            f"| {name}{'' if variant == 'whole' else f', {label(variant)}'} |{cells} {_ms(last.ms.p99)} | "
            f"{_per_second(last)} | {last.gflops:.3g} | {last.weight_gb_s:.3g} | {memory} | "
            f"{_decibels(standing.quality.sqnr_db)} |"
        )
    return lines


def _ours(result: BenchResult, at: Size) -> list[str]:
    lines = [
        f"Our pairs (user + item engine) against {at.baseline} ({_ms(at.baseline_ms)} ms) at N = {at.candidates}, "
        f"{counted(at.threads)}, FLOP limit {at.limit:.2f}:",
        "",
        "| pair | | user computed ms | times as fast | user cached ms | times as fast |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for o in standoffs(result.measured, at):
        lines.append(
            f"| {o.name} | {o.role} | {_ms(o.ms)} | {o.speedup:.2f} | {_ms(o.cached_ms)} | {o.cached_speedup:.2f} |"
        )
    return lines


def label(variant: str) -> str:
    """Return what a variant does, in words."""
    return {
        "whole": "whole model", "cold": "user computed", "cached": "user cached", "user": "user engine alone",
        "item": "item engine alone",
    }[variant]  # fmt: skip


def _ratio_table(result: BenchResult) -> list[str]:
    first = result.ratios[0]
    lines = [
        f"Speed-up over the ratio of user to item tokens, N = {first.candidates}, {counted(first.threads)}: "
        "RankMixer, random weights, width 288, two layers, user computed. "
        "'Same engine' is ONNX Runtime FP32 whole over split, which the FLOP limit bounds.",
        "",
        "| user + item tokens | limit | same engine | share of limit | fastest baseline | our fastest pair "
        "| baseline over ours |",
        "|---|---:|---:|---:|---|---|---:|",
    ]
    for p in result.ratios:
        lines.append(
            f"| {p.user_tokens} + {p.item_tokens} | {p.limit:.2f} | {p.speedup:.2f} | {p.speedup / p.limit:.0%} | "
            f"{p.baseline} {_ms(p.baseline_ms)} ms | {p.best} {_ms(p.best_ms)} ms | {p.best_speedup:.2f} |"
        )
    return lines


def _per_second(timing: Timing) -> str:
    return "-" if timing.variant == "user" else f"{timing.candidates_per_s:,.0f}"


def _decibels(value: float) -> str:
    return "equal" if value >= EXACT_DB else f"{value:.1f}"


def _ms(value: float) -> str:
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 100 else f"{value:.0f}"
