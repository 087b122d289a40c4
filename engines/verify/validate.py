"""Check a finished bundle again, on any machine: nothing but the bundle and requests are needed."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

from engines.bundle.bundle import Bundle
from engines.bundle.fixtures import read_fixtures
from engines.serve.core.replay import replay, score_alone
from engines.serve.ranker import Ranker
from engines.verify import prove
from engines.verify.checks import Check
from engines.verify.failing_rows import save_worst_rows
from engines.verify.fixtures import fixture_check
from engines.verify.reference import OnnxReference
from graphs.base.errors import GateFailed, printable_line
from graphs.base.progress import ProgressCallback, silent


def validate(
    bundle: Path,
    requests: Sequence[Path],
    seed: int = 1,
    progress: ProgressCallback = silent,
    worst: Path | None = None,
) -> prove.Proof:
    """Prove a bundle against its own FP32 graph on held-out requests, or on synthetic ones if none are given.

    Its fixtures are replayed too.

    If a check fails, the rows with the largest error are written to ``worst`` (npz, a file of requests).

    Raises:
        UgsepError: a tampered bundle, engines this machine cannot run, or unusable requests.
        GateFailed: a check fails and ``worst`` cannot be written.
    """
    opened = Bundle.open(bundle)
    opened.check_graphs()
    recipe = opened.recipe
    rows = list(opened.read_requests(requests) if requests else opened.synthetic_requests(seed=seed))

    fixtures = read_fixtures(bundle)
    with Ranker.from_bundle(bundle) as ranker:
        replayed = fixture_check(replay(fixtures, partial(score_alone, ranker)))
    limits = speedup_limits(opened, recipe.serving.candidates)
    found = prove.prove_bundle(recipe, opened.manifest, bundle, rows, OnnxReference(rows), limits, progress=progress)
    found = dataclasses.replace(found, checks=[*found.checks, replayed])
    if worst is not None and not found.passed:
        try:
            save_worst_rows(worst, rows, found.errors)
        except OSError as error:  # a read-only file system must not hide what failed
            broken = "; ".join(str(t) for t in found.checks if not t.passed)
            raise GateFailed(
                f"{bundle}: {broken}; the worst rows cannot be written to {worst} ({error.strerror}); "
                "pass --worst FILE"
            ) from error
    return found


def how_to_reproduce(bundle: Path, requests: Sequence[Path], seed: int = 1) -> str:
    """Return the command that validates the same bundle on the same requests."""
    rows = [part for path in requests for part in ("--requests", str(path))] or ["--synthetic", "--seed", str(seed)]
    return shlex.join(["ugsep", "validate", str(bundle), *rows])


def speedup_limits(bundle: Bundle, candidates: Sequence[int]) -> dict[int, float]:
    """Return the FLOP limit of the speed-up by request size, from the costs a bundle's report holds.

    Raises:
        UgsepError: the report cannot be read.
    """
    user, item, full = (bundle.report["split"][side]["flops"] for side in ("user", "item", "full"))
    return {n: n * full / max(1, user + n * item) for n in candidates}


def junit_xml(name: str, checks: Sequence[Check], reproduce: str = "") -> str:
    """Return the checks as a JUnit test suite, one case each, for CI servers; failures say how to ``reproduce``."""
    failures = str(sum(not t.passed for t in checks))
    group = printable_line(f"ugsep.{name}")  # XML has no control characters, not even escaped
    suite = ElementTree.Element("testsuite", name=group, tests=str(len(checks)), failures=failures)
    for check in checks:
        case = ElementTree.SubElement(suite, "testcase", classname=group, name=printable_line(check.name))
        if not check.passed:
            message = printable_line(str(check))
            ElementTree.SubElement(case, "failure", message=message).text = printable_line(reproduce)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True)
