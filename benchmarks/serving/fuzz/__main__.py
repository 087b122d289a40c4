"""python -m benchmarks.serving.fuzz BUNDLE --http PORT --grpc PORT: against a server that runs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.serving.fuzz.run import Target, fuzz
from engines import Ranker
from engines.bundle.manifest import read_manifest


def main() -> int:
    """Send mutated requests, print the answers by code; exit 1 if one was wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving.fuzz", description=main.__doc__)
    parser.add_argument("bundle", type=Path, help="the bundle that the server serves")
    parser.add_argument("--http", type=int, required=True, help="its HTTP port")
    parser.add_argument("--grpc", type=int, required=True, help="its gRPC port")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--model", default="", help="its name; that of the bundle if left out")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    manifest = read_manifest(given.bundle)
    with Ranker.from_bundle(given.bundle) as ranker:
        model = given.model or manifest.model
        target = Target(given.host, given.http, given.grpc, model, ranker, manifest.vocabularies)
        findings = fuzz(target, given.count, given.seed, lambda done: print(f"\r{done}", end="", file=sys.stderr))
    print("\r" + ", ".join(f"{code}: {n}" for code, n in sorted(findings.codes.items())))
    for line in findings.wrong:
        print(ascii(line)[1:-1])
    print(f"{given.count} requests, {len(findings.wrong)} wrong answers")
    return 1 if findings.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
