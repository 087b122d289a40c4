"""The page of the quality runs: a table with paired changes, findings compared with the paper, and a plot."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

BASE = "unmasked"
MASKED = "UG-Sep"
COMPENSATED = "UG-Sep + compensation"
QUANTIZED = "UG-Sep + compensation, W8"
WIDTH = 64  # of the models that the table compares; the recipes ship width 128
# UG-Sep (2602.10455): relative AUC change in per cent, by variant and ratio.
PAPER = {
    (MASKED, "3:1"): (-0.06, -0.06),
    (COMPENSATED, "1:1"): (-0.024, -0.004),
    (COMPENSATED, "3:1"): (-0.02, -0.02),
}

#: ``write`` replaces everything up to this line and keeps the hand-written text below it.
END = "<!-- end quality -->"


@dataclass(frozen=True)
class Result:
    """Test AUC and log-loss of one variant of one model at one ratio, by seed."""

    model: str
    ratio: str
    variant: str
    auc: tuple[float, ...]
    log_loss: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean AUC over the seeds."""
        return statistics.fmean(self.auc)

    @property
    def spread(self) -> float:
        """Standard deviation of the AUC over the seeds, 0 for a single one."""
        return statistics.stdev(self.auc) if len(self.auc) > 1 else 0.0


@dataclass(frozen=True)
class Change:
    """Relative AUC change in percent between two variants trained from the same seeds, and its standard error."""

    mean: float
    error: float

    @property
    def is_noise(self) -> bool:
        """Whether the change is within two standard errors of zero; always true for a single seed."""
        return not abs(self.mean) > 2 * self.error

    def __str__(self) -> str:
        """Print as ``-0.323 ± 0.051 %``."""
        return f"{self.mean:+.3f} ± {self.error:.3f} %"


def change(before: Result, after: Result) -> Change:
    """Return the change between two variants, paired by seed.

    All variants are scored on the same rows, so most of the sampling error of an AUC cancels in the difference and
    the spread over the seeds remains.
    """
    each = [100 * (b / a - 1) for a, b in zip(before.auc, after.auc, strict=True)]
    error = statistics.stdev(each) / math.sqrt(len(each)) if len(each) > 1 else math.inf
    return Change(statistics.fmean(each), error)


def findings(results: Sequence[Result]) -> list[str]:
    """Return the findings in words, one line per model and ratio, compared with the paper."""
    by_key: Mapping[tuple[str, str, str], Result] = {(r.model, r.ratio, r.variant): r for r in results}
    lines = []
    for (model, ratio, variant), masked in by_key.items():
        full = by_key.get((model, ratio, COMPENSATED))
        if variant != MASKED or full is None:
            continue
        base = by_key[model, ratio, BASE]
        parts = [
            _said("the mask", change(base, masked)),
            _said("compensation on top", change(masked, full)),
            _said("both", change(base, full)) + _against_paper(change(base, full), ratio),
        ]
        if (model, ratio, QUANTIZED) in by_key:
            parts.append(f"int8 weights: {change(full, by_key[model, ratio, QUANTIZED])}")
        lines.append(f"- **{model} {ratio}**: {'; '.join(parts)}.")
    return lines


def _said(what: str, found: Change) -> str:
    return f"{what}: {found}{' (noise)' if found.is_noise else ''}"


def _against_paper(found: Change, ratio: str) -> str:
    low, high = PAPER[COMPENSATED, ratio]
    if low - 2 * found.error <= found.mean <= high + 2 * found.error:
        return ", in agreement with the paper"
    return ", **worse than in the paper**" if found.mean < low else ", better than in the paper"


def markdown(results: Sequence[Result], seeds: Sequence[int], plot: str) -> str:
    """Return the page: AUC, spread and change against unmasked, with the paper's figures, then the findings."""
    base = {(r.model, r.ratio): r for r in results if r.variant == BASE}
    lines = [
        "# Quality on MovieLens-100K",
        "",
        "The quality cost of the UG-Sep mask, the information compensation and int8 weights: test AUC on the last",
        f"22 days, seeds {', '.join(map(str, seeds))}, width {WIDTH}, by `make quality`. Changes are relative to",
        "the unmasked model with the same tokens and seed, ± their standard error over the seeds; all variants are",
        "scored on the same 9,359 rows. With so few rows, the AUC of one model has a standard error of about 0.005,",
        "and 85 % of the rows belong to users never seen in training; the paper's figures come from production",
        "traffic, where a change of 0.01 % is significant.",
        "",
        "| model | user:item | variant | AUC mean | spread | change | log-loss | paper |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in results:
        against = "" if r.variant == BASE else str(change(base[r.model, r.ratio], r))
        loss = f"{statistics.fmean(r.log_loss):.4f}" if r.log_loss else ""
        low, high = PAPER.get((r.variant, r.ratio), (math.nan, math.nan))
        paper = "" if math.isnan(low) else f"{high} %" if low == high else f"{high} .. {low} %"
        lines.append(
            f"| {r.model} | {r.ratio} | {r.variant} | {r.mean:.4f} | {r.spread:.4f} | {against} | {loss} | {paper} |"
        )
    found = [
        "",
        "Findings (a change within two standard errors of zero is noise):",
        "",
        *findings(results),
    ]
    return "\n".join([*lines, "", f"![AUC by variant]({plot})", *found, "", END, ""])


def draw(results: Sequence[Result], path: Path) -> None:
    """Write the plot: AUC of every seed and the mean, by model, ratio and variant."""
    figure = Figure(figsize=(9, 0.34 * len(results) + 1))
    axes = figure.subplots()
    for row, r in enumerate(results):
        axes.plot(r.auc, [row] * len(r.auc), "o", color="#2a9d8f", alpha=0.6)
        axes.plot([r.mean], [row], "|", color="#e76f51", markersize=16, markeredgewidth=2)
    axes.set_yticks(range(len(results)), [f"{r.model} {r.ratio} {r.variant}" for r in results], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("test AUC (dot: seed, bar: mean)")
    figure.savefig(path, format="svg", bbox_inches="tight", metadata={"Date": None})


def write(results: Sequence[Result], seeds: Sequence[int], page: Path) -> None:
    """Write the page, its plot and the numbers as JSON; the text below ``END`` is kept."""
    page.parent.mkdir(parents=True, exist_ok=True)
    draw(results, page.with_suffix(".svg"))
    _, _, below = (page.read_text() if page.exists() else "").partition(f"{END}\n")
    page.write_text(markdown(results, seeds, page.with_suffix(".svg").name) + below)
    page.with_suffix(".json").write_text(json.dumps([dataclasses.asdict(r) for r in results], indent=1) + "\n")
