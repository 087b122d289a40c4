"""The page of the results: what failed is said, and short forms are marked."""

from __future__ import annotations

from pathlib import Path

from benchmarks.serving.campaigns.bench import Result
from benchmarks.serving.page import SECTIONS, write_page
from engines.verify.checks import Check

MACHINE = {"processor": "AMD", "cores": 2, "system": "Linux", "load": 0.1, "tools": {"onnxruntime": "1.31.1"}}
SOAK = {
    "seconds": 1800.0,
    "rate": 100.0,
    "http": {"requests": 1000, "lost": 0, "wrong": 0},
    "grpc": {"requests": 234, "lost": 0, "wrong": 1},
    "slope_mb_per_hour": 0.25,
    "rss_mb": [100.0, 101.0, 101.5],
    "sampled_seconds": [0.0, 900.0, 1800.0],
    "descriptors": {"least": 20, "most": 21},
}
OVERLOAD = {
    "before": 200.0,
    "after": 210.0,
    "sent_per_second": 400.0,
    "goodput": 199.0,
    "run": {"refused_ms": {"count": 9.0, "p50": 1.0, "p99": 2.0}, "ms": {"p50": 300.0, "p99": 320.0}},
    "rss_bytes": {"start": 10**8, "largest": 10**8},
}


def test_it_says_what_was_missed(tmp_path: Path) -> None:
    out = tmp_path / "serving-benchmark.md"
    checks = (Check("errors", 0, 0), Check("wrong scores", 1, 0), Check("memory after warm-up", 0.25, 1.0))
    goodput = (Check("lost requests", 0, 0), Check("goodput over capacity", float("nan"), 0.95, ">="))
    found = {
        "soak": Result("soak", False, checks, SOAK, MACHINE),
        "overload": Result("overload", True, goodput, OVERLOAD, MACHINE),
    }
    write_page(found, out)
    text = out.read_text()
    assert "| soak | wrong scores | 1 | <= 0 | **no** |" in text
    assert "| soak | memory after warm-up | 0.25 | <= 1 | yes |" in text
    assert "| overload | wrong scores, lost requests and the like | 0 | <= 0 | yes |" in text
    assert "| overload | goodput over capacity | nan | >= 0.95 | **no** |" in text
    assert "**Short forms, whose times mean nothing: overload.**" in text
    assert "1,234 requests, 0 lost, 1 wrong" in text
    assert text.index("## Overload") < text.index("## Soak")  # in the order of the campaigns
    assert "![Soak](serving-soak.svg)" in text
    svg = (tmp_path / "serving-soak.svg").read_text()
    assert svg.startswith("<svg")
    assert "Resident memory" in svg


def test_campaigns_of_several_machines_are_named_with_theirs(tmp_path: Path) -> None:
    checks = (Check("errors", 0, 0),)
    other = {**MACHINE, "processor": "Intel", "load": 2.0}
    found = {"soak": Result("soak", False, checks, SOAK, MACHINE)}
    found |= {"overload": Result("overload", False, checks, OVERLOAD, other)}
    write_page(found, tmp_path / "page.md")
    text = (tmp_path / "page.md").read_text()
    assert "AMD, 2 cores, Linux, onnxruntime 1.31.1. Load average before each campaign: soak 0.1." in text
    assert "Intel, 2 cores, Linux, onnxruntime 1.31.1. Load average before each campaign: overload 2.0." in text


def test_every_campaign_has_a_section() -> None:
    from benchmarks.serving.__main__ import NAMES

    assert tuple(SECTIONS) == NAMES


def test_turns_of_a_machine_that_changed_are_listed_apart(tmp_path: Path) -> None:
    keys = ("unloaded_p50_ms", "p50_ms", "p99_ms", "p99_over_unloaded", "measured_p50_ms", "measured_p99_ms")
    steady = dict.fromkeys((*keys, "constant_p50_ms", "constant_p99_ms"), 2.5)
    apart = {**steady, "before": 342.4, "after": 249.6, "rate": 239.7, "p99_ms": 95.25}
    steady |= {"before": 300.125, "after": 290.25, "rate": 210.5}
    figures = {
        "candidates": 64,
        "share": 0.7,
        "most_change": 0.15,
        "left_out": {},
        "steady": {"ugsep serve": [steady], "triton": []},
        "set_apart": {"ugsep serve": [], "triton": [apart, apart]},
        "median": {"ugsep serve": steady, "triton": {}},
    }
    out = tmp_path / "page.md"
    write_page(
        {"latency": Result("latency", False, (Check("steady turns, triton", 0, 3, ">="),), figures, MACHINE)}, out
    )
    text = out.read_text()
    assert "| ugsep serve | 1 | 300.12 | 290.25 | 210.50 | 2.50 |" in text
    assert "| triton |" not in text  # it has no figure
    assert "Set apart, triton: 342 to 250/s, p99 95.2 ms; 342 to 250/s, p99 95.2 ms." in text
    assert "Set apart, ugsep serve" not in text
    assert "| latency | steady turns, triton | 0 | >= 3 | **no** |" in text
    assert (tmp_path / "serving-latency.svg").read_text().startswith("<svg")
