"""The results as ``docs/serving-benchmark.md`` with plots beside it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.serving.campaigns.bench import Result
from benchmarks.serving.plots import capacity_plot, latency_plot, overhead_plot, soak_plot
from engines.render.markdown import table
from engines.verify.checks import Check

_HEADER = """# Serving under load

Written by `python -m benchmarks.serving report` from the results of `python -m benchmarks.serving all`: the
server on one core of a machine, the load generator on another. Latencies count from when a request was due, not from
when it could be sent. Every answer, in every campaign, was compared with the score that `Ranker` gives in process for
the version that the answer names: *wrong* means anything but bit-equal, or beyond the tolerance of a batched call.
"""

Section = Callable[[Mapping[str, Any]], list[str]]


def write_page(found: Mapping[str, Result], out: Path) -> None:
    """Write the page, and its plots beside it as ``serving-*.svg``."""
    found = {name: found[name] for name in SECTIONS if name in found}
    lines = [_HEADER, *_machine(found), "## Bounds", "", *_bounds(found), ""]
    out.parent.mkdir(parents=True, exist_ok=True)
    for name, (title, section, plot) in SECTIONS.items():
        if name not in found:
            continue
        figures = found[name].figures
        lines += [f"## {title}", "", *section(figures), ""]
        if plot is not None:
            (out.parent / f"serving-{name}.svg").write_text(plot(figures) + "\n", encoding="utf-8")
            lines += [f"![{title}](serving-{name}.svg)", ""]
    lines += ["## Again", "", "```bash", *_commands(found), "```", ""]
    out.write_text("\n".join(lines), encoding="utf-8")


def _machine(found: Mapping[str, Result]) -> list[str]:
    """Name the machine, or those that campaigns were run on at different times, with the load before each."""
    campaigns: dict[str, list[str]] = {}
    for name, result in found.items():
        machine, tools = result.machine, result.machine.get("tools", {})
        text = (
            f"{machine.get('processor')}, {machine.get('cores')} cores, {machine.get('system')}, "
            f"onnxruntime {tools.get('onnxruntime', '?')}"
        )
        campaigns.setdefault(text, []).append(f"{name} {machine.get('load', 0):.1f}")
    lines = [f"{text}. Load average before each campaign: {', '.join(names)}.\n" for text, names in campaigns.items()]
    short = [name for name, result in found.items() if result.short]
    if short:
        lines += [f"**Short forms, whose times mean nothing: {', '.join(short)}.**", ""]
    return lines


def _bounds(found: Mapping[str, Result]) -> list[str]:
    rows = []
    for name, result in found.items():
        counts = [check for check in result.checks if check.relation == "<=" and check.bound == 0]
        if counts:  # what must not happen at all, in one row: that it did not is the usual case
            worst = max(counts, key=lambda check: check.value)
            what = "wrong scores, lost requests and the like" if worst.passed else worst.name
            rows.append(_row(name, dataclasses.replace(worst, name=what)))
        rows += [_row(name, check) for check in result.checks if check not in counts]
    return table(("campaign", "what", "found", "bound", "kept"), rows, "llrrl")


def _row(name: str, check: Check) -> tuple[str, str, str, str, str]:
    kept = "yes" if check.passed else "**no**"
    return name, check.name, _number(check.value), f"{check.relation} {_number(check.bound)}", kept


def _number(value: float) -> str:
    if math.isfinite(value) and value == int(value):
        return f"{int(value):,}"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def _overhead(figures: Mapping[str, Any]) -> list[str]:
    rows = [
        (
            name,
            f"{one['ms']['p50']:.2f}",
            f"{one['ms']['p99']:.2f}",
            f"{one['overhead_p50_ms']:.2f}",
            f"{one['overhead_paired_ms']:.2f}",
        )
        for name, one in figures["contenders"].items()
    ]
    return [
        f"One request at a time of {figures['candidates']} candidates, user cached, {figures['rounds']} rounds in "
        "turn. Paired: the median of the differences within a round. Triton and KServe run the same ONNX files in "
        "the same version of ONNX Runtime, with a cache of user states in their model (Triton's ensemble: "
        "its response cache). Floor: the least that a Python server adds. It knows the requests by heart and parses, "
        "checks, counts and refuses nothing: over HTTP a bare asyncio protocol and a worker thread, over gRPC a bare "
        "handler of grpcio. What is above the floor is ours; the floor is asyncio's, grpcio's and the system's.",
        "",
        *table(("milliseconds", "p50", "p99", "over Ranker.score", "paired"), rows),
        *_left_out(figures),
    ]


def _left_out(figures: Mapping[str, Any]) -> list[str]:
    return (
        ["", *(f"Not run: {name}: {why}" for name, why in figures["left_out"].items())] if figures["left_out"] else []
    )


def _latency(figures: Mapping[str, Any]) -> list[str]:
    columns = {
        "before": "saturation/s before",
        "after": "after",
        "rate": "rate/s",
        "unloaded_p50_ms": "unloaded p50",
        "p50_ms": "p50",
        "p99_ms": "p99",
        "p99_over_unloaded": "p99 over unloaded p50",
        "measured_p50_ms": "ideal queue p50",
        "measured_p99_ms": "ideal queue p99",
        "constant_p99_ms": "M/D/1 p99",
    }
    rows = [
        (name, f"{len(figures['steady'][name])}", *(f"{one[key]:,.2f}" for key in columns))
        for name, one in figures["median"].items()
        if one
    ]
    return [
        f"Poisson arrivals at {figures['share']:.0%} of what the server answered right before when it never waited, "
        f"{figures['candidates']} candidates, users cached; medians of the steady turns, milliseconds. The machine "
        "changes its speed within minutes, so each turn measures the saturation before and after the load. A turn "
        f"in which the two differ by more than {figures['most_change']:.0%} is not steady: its load was another "
        "share of the saturation than it was to be. It is set apart and repeated.",
        "",
        "The ideal queue gets the arrivals of the turn and answers one request at a time, in their order, without "
        "any cost of its own. Each takes as long as a request took while the server was saturated, pauses of the "
        "machine included; in M/D/1 all take the mean of these times. The difference between the two is the "
        "machine's, what is above the ideal queue is the server's.",
        "",
        *table(("", "steady turns", *columns.values()), rows),
        *_set_apart(figures),
        *_left_out(figures),
    ]


def _set_apart(figures: Mapping[str, Any]) -> list[str]:
    """Return a line on the turns that do not count, of each server that has some."""
    lines = []
    for name, turns in figures["set_apart"].items():
        listed = "; ".join(f"{t['before']:.0f} to {t['after']:.0f}/s, p99 {t['p99_ms']:.1f} ms" for t in turns)
        if listed:
            lines += ["", f"Set apart, {name}: {listed}."]
    return lines


def _capacity(figures: Mapping[str, Any]) -> list[str]:
    whole = figures["per_second"]["whole model"]
    rows = [
        (name, f"{rate:,.0f}", f"{figures['saturation'][name]:,.0f}", f"{rate / whole:.2f}x")
        for name, rate in figures["per_second"].items()
    ]
    runtimes = ", ".join(f"{name} {ms:.2f}" for name, ms in figures["runtimes_p50_ms"].items())
    return [
        f"The highest rate with every request answered and p99 <= {figures['p99_ms']:.0f} ms, found by a staircase "
        "for each server, in turn: up after a rate that was held, down after one that was not; "
        f"{figures['candidates']} candidates, {figures['users']} users. The whole model runs behind the same server "
        f"in its fastest runtime here, {figures['runtime']} (p50 of a request in ms: {runtimes}).",
        "",
        *table(("", "requests/s", "saturation/s", "over the whole model"), rows),
    ]


def _batching(figures: Mapping[str, Any]) -> list[str]:
    inside, rates, users = figures["in_process_ms"], figures["per_second"], figures["users_per_call"]
    rows = [
        (
            "requests/s through the server",
            f"{rates['separate']:,.0f}",
            f"{rates['batched']:,.0f}",
            f"{figures['ratio']:.2f}x",
        ),
        ("users in the item call of a request, mean", f"{users['separate']:.1f}", f"{users['batched']:.1f}", ""),
        (
            f"ms for all {figures['users']} in process",
            f"{inside['separate']:.2f}",
            f"{inside['batched']:.2f}",
            f"{figures['in_process_ratio']:.2f}x",
        ),
    ]
    return [
        f"{figures['users']} users with {figures['candidates']} candidates each, cached; twice as many requests "
        "under way as fit one call.",
        "",
        *table(("", "a call each", "shared calls", "gain"), rows),
    ]


def _overload(figures: Mapping[str, Any]) -> list[str]:
    refused, memory = figures["run"]["refused_ms"], figures["rss_bytes"]
    rows = [
        ("capacity before and after, requests/s", f"{figures['before']:,.0f} and {figures['after']:,.0f}"),
        ("sent per second", f"{figures['sent_per_second']:,.0f}"),
        ("answered per second", f"{figures['goodput']:,.0f}"),
        ("refused", f"{refused['count']:,.0f}"),
        ("refusal, p50 and p99 ms", f"{refused.get('p50', 0):.2f} and {refused.get('p99', 0):.2f}"),
        ("answer, p50 and p99 ms", f"{figures['run']['ms']['p50']:.0f} and {figures['run']['ms']['p99']:.0f}"),
        ("memory at the start and at most, MB", f"{memory['start'] / 1e6:.0f} and {memory['largest'] / 1e6:.0f}"),
    ]
    return table(("twice the capacity", ""), rows)


def _disturbed(figures: Mapping[str, Any]) -> list[str]:
    rows = [
        (
            kind,
            f"{run['requests']:,}",
            f"{run['codes'].get('200', 0):,}",
            f"{run['exact']:,}",
            f"{run['wrong']:,}",
            f"{run['ms'].get('p50', 0):.1f}",
            f"{run['ms'].get('p99', 0):.1f}",
            f"{run['ms'].get('max', 0):.0f}",
        )
        for kind, run in (("HTTP", figures["http"]), ("gRPC", figures["grpc"]))
    ]
    heads = ("through HAProxy", "sent", "answered", "bit-equal", "wrong", "p50 ms", "p99 ms", "max ms")
    return [*table(heads, rows), "", "; ".join(figures["events"]) + "."]


def _affinity(figures: Mapping[str, Any]) -> list[str]:
    rows = [
        (count, f"{ratio:.1%}", f"{figures['over_one'][count]:.1%}") for count, ratio in figures["hit_ratio"].items()
    ]
    return [
        f"{figures['requests']:,} requests of {figures['users']:,} users by Zipf's law; all caches together hold "
        f"about {figures['cached_users']:,} users.",
        "",
        *table(("replicas", "hit ratio", "of one cache as large as all"), rows),
    ]


def _swaps(figures: Mapping[str, Any]) -> list[str]:
    run, seconds = figures["run"], sorted(figures["seconds"])
    refusals = ", ".join(dict.fromkeys(r["damage"].replace("_", " ") for r in figures["refusals"]))
    return [
        f"{len(seconds)} bundles in turn, of two models: {figures['outcomes'].get('serving', 0)} served, "
        f"{figures['outcomes'].get('refused', 0)} refused ({refusals}). {run['requests']:,} requests meanwhile: "
        f"{run['codes'].get('200', 0):,} answered, {run['exact']:,} bit-equal to the version they name, "
        f"{run['wrong']} wrong. A swap took {seconds[len(seconds) // 2]:.2f} s from the new link to the first "
        f"answer (at most "
        f"{seconds[-1]:.2f} s); p99 {run['ms']['p99']:.1f} ms. Memory {figures['rss_bytes']['before'] / 1e6:.0f} MB "
        f"before, {figures['rss_bytes']['after'] / 1e6:.0f} MB after, with two bundles loaded.",
    ]


def _soak(figures: Mapping[str, Any]) -> list[str]:
    http, grpc = figures["http"], figures["grpc"]
    return [
        f"{figures['seconds'] / 60:.0f} minutes at {figures['rate']:.0f} requests/s, HTTP and gRPC 4:1, Zipf users: "
        f"{http['requests'] + grpc['requests']:,} requests, {http['lost'] + grpc['lost']} lost, "
        f"{http['wrong'] + grpc['wrong']} wrong. Memory {figures['slope_mb_per_hour']:+.2f} MB/h after warm-up, "
        f"descriptors {figures['descriptors']['least']} to {figures['descriptors']['most']}.",
    ]


def _commands(found: Mapping[str, Result]) -> list[str]:
    return [
        "make engines MODEL=zenith",
        "python -m benchmarks.serving rivals   # Triton and KServe, each in an environment of its own",
        f"python -m benchmarks.serving run {' '.join(found)}",
        "python -m benchmarks.serving report",
    ]


SECTIONS: Mapping[str, tuple[str, Section, Callable[[Mapping[str, Any]], str] | None]] = {
    "overhead": ("What a server adds", _overhead, overhead_plot),
    "latency": ("Latency under load", _latency, latency_plot),
    "capacity": ("Capacity", _capacity, capacity_plot),
    "batching": ("Micro-batching", _batching, None),
    "overload": ("Overload", _overload, None),
    "kill": ("Replicas that are killed", _disturbed, None),
    "rolling": ("Rolling restart", _disturbed, None),
    "affinity": ("Users stay with their replica", _affinity, None),
    "swaps": ("Hot swaps", _swaps, None),
    "soak": ("Soak", _soak, soak_plot),
}
