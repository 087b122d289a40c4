"""The figures of the campaigns as ``docs/reliability.md``, from the JSON beside it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.reliability.registry import REPORTED
from benchmarks.reliability.summary import Summary
from engines.render.markdown import table
from graphs.base.errors import UgsepError

_HEADER = """# Reliability

Written by `python -m benchmarks.reliability report` from the campaigns of `benchmarks/reliability/`: seeded tries
that do what production does to a program: kill it, starve it, hand it damaged files, call it from many threads. `ok`
means that the promise held, `refused` that bad input was answered by one line and exit status 2 (or 1 for a failed
gate), `defect` anything else. CI runs a short form of each.
"""

_AGAIN = """## Again

```bash
make campaign NAME=kill MINUTES=30                      # resumes where an earlier run stopped; --fresh discards it
python -m benchmarks.reliability run kill --only 17     # try 17 alone; --seed S if it was of another seed
python -m benchmarks.reliability coverage --minutes 30  # the parsers, with atheris: pip install 'ugsep[fuzz]'
python -m benchmarks.reliability report                 # this page
```
"""


def save_figures(found: Sequence[Summary], folder: Path) -> None:
    """Write the figures of each campaign to a file of its own, which replaces an older one."""
    folder.mkdir(parents=True, exist_ok=True)
    for one in found:
        (folder / f"{one.name}.json").write_text(json.dumps(asdict(one), indent=1) + "\n", encoding="utf-8")


def load_figures(folder: Path) -> list[Summary]:
    """Return the saved figures in the order of the page.

    Raises:
        UgsepError: a file that does not hold figures of a campaign.
    """
    found = {}
    for file in sorted(folder.glob("*.json")):
        try:
            found[file.stem] = Summary(**json.loads(file.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise UgsepError(f"{file}: not figures of a campaign ({error!r}); run the campaign again") from error
    return [found[name] for name in REPORTED if name in found]


def write_page(found: Sequence[Summary], out: Path) -> None:
    """Write the page."""
    rows = [(one.name, one.goal, f"{one.tries:,}", _count(one.defect_count)) for one in found]
    lines = [_HEADER, *table(("campaign", "promise", "tries", "defects"), rows, "llrr"), ""]
    for one in found:
        lines += [f"## {one.name}", "", *_targets(one), ""]
        if one.figures:
            lines += [*_figures(one), ""]
        if one.history:
            lines += [one.history, ""]
        if one.measures:
            lines += [*_measures(one), ""]
        if one.defects:
            lines += [*_defects(one), ""]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("\n".join([*lines, _AGAIN]), encoding="utf-8")


def _targets(one: Summary) -> list[str]:
    rows = []
    for target, counts in one.targets.items():
        cells = [f"{counts.get(result, 0):,}" for result in ("ok", "refused")]
        rows.append((target, *cells, _count(counts.get("defect", 0)), _kinds(one.kinds.get(target, {}))))
    return table(("target", "ok", "refused", "defects", "of these"), rows, "lrrrl")


def _kinds(kinds: dict[str, int]) -> str:
    most = list(kinds.items())[:8]
    rest = len(kinds) - len(most)
    return ", ".join(f"{kind} {count:,}" for kind, count in most) + (f", {rest} more" if rest > 0 else "")


def _figures(one: Summary) -> list[str]:
    names = list(dict.fromkeys(name for found in one.figures.values() for name in found))
    rows = [(target, *(f"{found.get(name, 0):,.7g}" for name in names)) for target, found in one.figures.items()]
    return table(("target", *names), rows)


def _measures(one: Summary) -> list[str]:
    rows = [
        (target, name, *(f"{values[key]:,.4g}" for key in ("least", "median", "most", "total")))
        for target, measures in one.measures.items()
        for name, values in measures.items()
    ]
    return table(("target", "measure", "least", "median", "most", "total"), rows, "llrrrr")


def _defects(one: Summary) -> list[str]:
    rows = [(str(d["index"]), d["target"], d["kind"], d["detail"]) for d in one.defects]
    return table(("try", "target", "defect", "detail"), rows, "rlll")


def _count(defects: int) -> str:
    return f"**{defects:,}**" if defects else "0"
