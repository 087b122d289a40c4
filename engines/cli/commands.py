"""The table of the commands of ``ugsep``: plain data, so that one is loaded without the packages of the others."""

from __future__ import annotations

from collections.abc import Mapping

from engines.cli.command_entry import CommandEntry

__all__ = ["COMMANDS"]


COMMANDS: Mapping[str, CommandEntry] = {
    # models
    "models": CommandEntry(
        "engines.cli.models",
        "List the shipped recipes: parameters, FLOPs per candidate, user:item tokens, reusable share, "
        "speed-up limit.",
    ),
    "split": CommandEntry(
        "engines.cli.split",
        "Split the model that FACTORY (path/to/file.py:function) returns, and verify the subgraphs on random rows.",
    ),
    # build
    "build": CommandEntry("engines.cli.build", "Build a bundle for MODEL: split, export, quantize, compile, verify."),
    "stream": CommandEntry(
        "engines.cli.stream",
        "Export and quantize MODEL (a recipe) weight by weight, from a checkpoint that does not fit in memory.",
    ),
    "random-checkpoint": CommandEntry(
        "engines.cli.random_checkpoint",
        "Write a checkpoint of MODEL (a recipe) with random weights, shard by shard.",
    ),
    "cache": CommandEntry("engines.cli.cache", "List, verify and prune the engine cache."),
    # inspect, verify and debug bundles
    "inspect": CommandEntry(
        "engines.cli.bundles.inspect",
        "Show the contents of BUNDLE: engines, their settings and sizes, and the status of every weight.",
    ),
    "verify": CommandEntry(
        "engines.cli.bundles.verify",
        "Check every file of BUNDLE against its manifest, and that against its digest; unlisted ones are errors.",
    ),
    "validate": CommandEntry(
        "engines.cli.bundles.validate", "Check every gate of BUNDLE again: hashes, parity, AUC, invariance, latency."
    ),
    "bisect": CommandEntry(
        "engines.cli.bundles.bisect",
        "Find the first tensor where BUNDLE's engines diverge from the FP32 graphs; exit with status 1 if found.",
    ),
    "routing": CommandEntry(
        "engines.cli.bundles.routing",
        "Compare the experts that BUNDLE's engines and its FP32 graphs choose for each row, "
        "and the effect on scores.",
    ),
    # serve
    "serve": CommandEntry(
        "engines.cli.serving.serve",
        "Serve BUNDLE over HTTP and gRPC until SIGTERM; a new bundle at the same path is loaded and switched to.",
        "serve",
    ),
    "rollback": CommandEntry(
        "engines.cli.serving.rollback",
        "Serve the previous bundle again, which a running 'ugsep serve' keeps in memory.",
        "serve",
    ),
    "reload": CommandEntry(
        "engines.cli.serving.rollback",
        "Load what lies at the path of a running 'ugsep serve' now; wait until it serves or is refused.",
        "serve",
    ),
    # compare
    "replay": CommandEntry(
        "engines.cli.bundles.replay",
        "Score requests with BUNDLE and compare OTHER with it: ranks, top-k, score drift, latency.",
    ),
    "bench": CommandEntry(
        "engines.cli.bundles.bench",
        "Benchmark BUNDLE against other ways to serve its model, in one interleaved run.",
    ),
    "schemes": CommandEntry(
        "engines.cli.bundles.schemes",
        "Quantize the FP32 graphs of BUNDLES with each scheme; compare scores, bytes and latency.",
    ),
}
