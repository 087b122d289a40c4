"""Mutated requests over both protocols: no server error, no wrong score, no lost answer."""

from __future__ import annotations

from pathlib import Path

from benchmarks.serving.fuzz.run import Target, fuzz
from tests.engines.serve.oip.local_server import load, serving


def test_mutated_requests_are_refused_or_scored_right(built_bundle: Path) -> None:
    with serving(built_bundle, max_body=1 << 20, body_timeout=5.0) as server, load(built_bundle).ranker as ranker:
        rows = server.context.slot.current().manifest.vocabularies
        target = Target("127.0.0.1", server.http_port, server.grpc_port, "tiny", ranker, rows)
        findings = fuzz(target, 1500, seed=0)
    assert findings.wrong == []
    assert server.bugs == []
    assert findings.codes["HTTP 200"] > 50
    assert findings.codes["OK"] > 50
    assert findings.codes["HTTP 400"] > 300
    assert findings.codes["INVALID_ARGUMENT"] > 300
