"""The commands that run out of something."""

from __future__ import annotations

from pathlib import Path

from benchmarks.reliability.resources.bench import Case
from benchmarks.reliability.small_model import OPTIONS

_TIMED = ("manifest.json", "report.json", "report.html", "engine.json")


def cases(recipe: Path, checkpoint: Path, small: Path) -> dict[str, Case]:
    """Return the cases by name.

    Args:
        recipe: of the smallest Zenith.
        checkpoint: its checkpoint.
        small: the recipe of the small model.
    """
    factory = f"{Path(__file__).parents[1] / 'small_model.py'}:make"
    table = [
        Case("ugsep verify", lambda f: ("ugsep", "verify", str(f / "bundle")), writes=False),
        Case("ugsep inspect", lambda f: ("ugsep", "inspect", str(f / "bundle")), writes=False),
        Case("quant inspect", lambda f: ("quant", "inspect", str(f / "bundle")), writes=False),
        Case("ugsep validate", lambda f: ("ugsep", "validate", str(f / "bundle"), "--synthetic"), writes=False),
        Case("quant calibrate",
             lambda f: ("quant", "calibrate", str(f / "bundle"), "--synthetic", "300", "--out", str(f / "new")),
             resumes=True),
        Case("quant weights",
             lambda f: ("quant", "weights", str(f / "bundle"), "--scheme", "absmax", "--out", str(f / "new"))),
        Case("ugsep stream",
             lambda f: ("ugsep", "stream", str(recipe), "--checkpoint", str(checkpoint), "--out", str(f / "new")),
             resumes=True),
        Case("ugsep build",
             lambda f: ("ugsep", "build", factory, *OPTIONS, "--recipe", str(small), "--out", str(f / "new")),
             volatile=_TIMED),
    ]  # fmt: skip
    return {case.name: case for case in table}


#: Cheap ones; the others trace a model, which takes seconds.
CHEAP = ("ugsep verify", "ugsep inspect", "quant inspect", "ugsep validate", "quant calibrate", "quant weights")
WRITERS = ("quant calibrate", "quant weights")
COSTLY = ("ugsep stream", "ugsep build")
