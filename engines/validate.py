"""Check a finished bundle again, on any machine: nothing but the bundle and requests are needed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from engines import proof
from engines.backend import Runner
from engines.bundle import open_bundle
from engines.gates import Scores
from engines.recipe import load_recipe
from engines.report import read_report
from engines.sources import SYNTHETIC_CANDIDATES, SYNTHETIC_REQUESTS
from graphs.errors import UgsepError
from graphs.progress import ProgressCallback, silent
from quant.requests import read_requests, request_spec, synthetic_requests, table_rows


def validate(
    bundle: Path, requests: Sequence[Path], seed: int = 1, progress: ProgressCallback = silent
) -> proof.Proof:
    """Prove a bundle against its own FP32 graph on held-out requests, or on synthetic ones where none are given.

    Raises:
        UgsepError: a tampered bundle, engines this machine cannot run, or unusable requests.
    """
    manifest = open_bundle(bundle)
    recipe = load_recipe(str(bundle / "recipe.yaml"))
    user, item = bundle / "onnx" / "user.onnx", bundle / "onnx" / "item.onnx"
    spec = request_spec(user, item)
    if requests:
        rows = list(read_requests([str(p) for p in requests], spec))
    else:
        vocabulary = max(table_rows(user, item), 1)
        rows = list(synthetic_requests(spec, SYNTHETIC_REQUESTS, SYNTHETIC_CANDIDATES, vocabulary, seed))

    def reference(full: Runner) -> Scores:
        return proof.full_scores(full, rows, progress)

    limits = speedup_limits(bundle, recipe.serving.candidates)
    return proof.prove(recipe, manifest, bundle, rows, reference, limits, progress=progress)


def speedup_limits(bundle: Path, candidates: Sequence[int]) -> dict[int, float]:
    """Return the FLOP limit of the speed-up by request size, from the costs a bundle's report holds.

    Raises:
        UgsepError: the report lacks them.
    """
    report = read_report(bundle)
    try:
        user, item = int(report["split"]["user"]["flops"]), int(report["split"]["item"]["flops"])
    except (KeyError, TypeError, ValueError) as error:
        raise UgsepError(f"{bundle / 'report.json'}: no FLOPs per side ({error}); build the bundle again") from error
    return {n: n * (user + item) / (user + n * item) for n in candidates}


def junit_xml(name: str, found: proof.Proof) -> str:
    """Return the targets as a JUnit test suite, one case each, for CI servers."""
    failures = sum(not t.passed for t in found.targets)
    suite = ElementTree.Element(
        "testsuite", name=f"ugsep.{name}", tests=str(len(found.targets)), failures=str(failures)
    )
    for target in found.targets:
        case = ElementTree.SubElement(suite, "testcase", classname=f"ugsep.{name}", name=target.name)
        if not target.passed:
            ElementTree.SubElement(case, "failure", message=str(target))
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True)
