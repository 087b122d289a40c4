"""The table of parsers that are fuzzed; a parser is imported in the process that fuzzes it."""

from __future__ import annotations

from dataclasses import dataclass

from graphs.base.errors import UgsepError, nearest

__all__ = ["TARGETS", "Target", "target_of"]


@dataclass(frozen=True)
class Target:
    """A parser by name.

    Args:
        name: as in ``--target NAME``.
        module: the module that has it.
        factory: a function there, from an empty folder to a ``Parser``.
        watched: files and folders, relative to the repository, whose coverage guides the fuzzer.
    """

    name: str
    module: str
    factory: str
    watched: tuple[str, ...]


_BASE = ("graphs/base/config.py", "graphs/base/json_text.py", "graphs/base/limits.py")
_YAML = ("graphs/base/config.py", "graphs/base/yaml_text.py")
_OIP = ("engines/serve/oip", "graphs/base/config.py")
_MANIFESTS = "benchmarks.reliability.fuzz.guided.parsers.bundles"
_RECIPES = "benchmarks.reliability.fuzz.guided.parsers.recipes"
_CHECKPOINTS = "benchmarks.reliability.fuzz.guided.parsers.checkpoints"
_REQUESTS = "benchmarks.reliability.fuzz.guided.parsers.requests"
_GRAPHS = "benchmarks.reliability.fuzz.guided.parsers.graphs"
_PROTOCOL = "benchmarks.reliability.fuzz.guided.parsers.protocol"
_BUNDLE = ("engines/bundle", "engines/backends/built_engine.py", "engines/backends/engine_spec.py", *_BASE)
_ONNX = (
    "export/io.py",
    "export/metadata.py",
    "export/graph_limits.py",
    "quant/graph",
    "quant/weight_table.py",
    *_BASE,
)

TARGETS = (
    Target("manifest", _MANIFESTS, "manifest", _BUNDLE),
    Target("fixtures", _MANIFESTS, "fixtures", _BUNDLE),
    Target("report", _MANIFESTS, "report", _BUNDLE),
    Target("recipe", _RECIPES, "recipe", ("engines/recipes", *_YAML)),
    Target("set-option", _RECIPES, "setting", ("engines/recipes", *_YAML)),
    Target("policy", _RECIPES, "policy", ("quant/policy.py", *_YAML)),
    Target("features", _CHECKPOINTS, "features", ("graphs/models", "graphs/base", "engines/build/sources.py")),
    Target("checkpoint-config", _CHECKPOINTS, "config", ("graphs/models", "graphs/base")),
    Target("checkpoint-weights", _CHECKPOINTS, "weights", ("graphs/checkpoint", *_BASE)),
    Target("calibration", _CHECKPOINTS, "calibration", ("quant/calibration", "graphs/checkpoint", *_BASE)),
    Target("request-npz", _REQUESTS, "npz", ("quant/requests",)),
    Target("request-parquet", _REQUESTS, "parquet", ("quant/requests",)),
    Target("request-arrow", _REQUESTS, "arrow", ("quant/requests",)),
    Target("onnx-metadata", _GRAPHS, "metadata", _ONNX),
    Target("onnx-graph", _GRAPHS, "graph", _ONNX),
    Target("oip-json", _PROTOCOL, "json_body", _OIP),
    Target("oip-binary", _PROTOCOL, "binary_body", _OIP),
    Target("oip-grpc", _PROTOCOL, "grpc_message", _OIP),
)


def target_of(name: str) -> Target:
    """Return a target by name.

    Raises:
        UgsepError: no target of that name.
    """
    for target in TARGETS:
        if target.name == name:
            return target
    raise UgsepError(f"unknown target '{name}'{nearest(name, [target.name for target in TARGETS])}")
