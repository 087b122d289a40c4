"""The tables: what was split, what was not and why, and the gates of builds."""

from __future__ import annotations

from pathlib import Path

from benchmarks.model_zoo.page import tables, write_tables
from benchmarks.model_zoo.results import Build, Gate, Result

BUILT = Build(
    1,
    (
        Gate("split max |score difference|", 2e-6, 1e-5, "<=", True),
        Gate("quantized SQNR dB [ctr]", 30.25, 35.0, ">=", False),
        Gate("quantized SQNR dB [cvr]", 41.0, 35.0, ">=", True),
        Gate("quantized Kendall tau [ctr]", 0.999, 0.99, ">=", True),
        Gate("quantized Kendall tau [cvr]", 0.995, 0.99, ">=", True),
    ),
    speedup=1.5,
    limit=2.0,
)
SPLIT = Result(
    "recbole", "DIN", "split", share=0.4, limit=1.66, state_bytes=1080, float64=1e-15, float32=2e-7, onnx=3e-7,
    whole_ms=3.0, user_ms=0.5, item_ms=1.5, build=BUILT,
)  # fmt: skip
REFUSED = Result("recbole", "SRGNN", "refused", "rows depend on each other: a | b")


def test_tables_have_every_model_once_and_bold_gates_that_failed() -> None:
    lines = tables({"torch": "2.13.0"}, [SPLIT, REFUSED])
    assert (
        "| DIN (recbole) | 40 % | 1.66x | 1.50x | 3.00 | 0.50 | 1.50 | 1080 | 1.0e-15 | 2.0e-07 | 3.0e-07 |" in lines
    )
    assert "| SRGNN (recbole) | refused | rows depend on each other: a \\| b |" in lines
    (built,) = [line for line in lines if "a gate failed" in line]
    assert "| 2e-06 | **30.2** | 0.995 | - |" in built
    assert built.endswith("| 1.50x | 2.00x |")


def test_the_section_is_replaced_and_the_rest_kept(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Title\n\nbefore\n")
    write_tables(page, {}, [REFUSED])
    write_tables(page, {}, [SPLIT])
    text = page.read_text()
    assert text.startswith("# Title\n\nbefore\n")
    assert text.count("DIN (recbole)") == 2
    assert "SRGNN" not in text
