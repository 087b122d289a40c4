"""The precision of each weight, as an ordered list of globs that people read and edit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from export.metadata import side_of
from graphs.base.config import parse
from graphs.base.errors import UgsepError, nearest
from graphs.base.regular_file import is_regular_file
from graphs.base.yaml_text import read_yaml
from quant.graph.gemms import load_graph, weights_of

Precision = Literal["int8", "fp16", "fp32"]
BITS: Mapping[Precision, int] = {"int8": 8, "fp16": 16, "fp32": 32}
NORMS = ("ReduceMean", "ReduceSum", "ReduceL2", "ReduceSumSquare", "Pow", "Sqrt", "Reciprocal")


@dataclass(frozen=True)
class Rule:
    """The precision of weights whose name, or ``side:name``, matches the glob; ``reason`` is shown to people."""

    glob: str
    precision: Precision
    reason: str = ""

    def matches(self, side: str, weight: str) -> bool:
        """Whether the rule applies to this weight of this side."""
        return fnmatchcase(weight, self.glob) or fnmatchcase(f"{side}:{weight}", self.glob)


@dataclass(frozen=True)
class Policy:
    """Precision of every weight: that of the first matching rule, else ``default``.

    ``block`` is the number of rows of K per scale, 0 for one scale per output channel. int8 is stored as int8 in both
    typed views, fp16 as FP16 (the FP32-typed view casts it); fp32 takes the float type of the view. ``tables`` also
    quantizes embedding tables, per row. ``keep_fp32_ops`` names what the FP16-typed view computes in FP32: op
    types, ``MatMul:activations`` (a MatMul without a weight), or globs of node names.
    """

    rules: tuple[Rule, ...] = ()
    default: Precision = "int8"
    block: int = 0
    tables: bool = False
    keep_fp32_ops: tuple[str, ...] = NORMS

    def precision_of(self, side: str, weight: str) -> tuple[Precision, str]:
        """Return the precision and the reason, "" if the default decides."""
        for rule in self.rules:
            if rule.matches(side, weight):
                return rule.precision, rule.reason or f"policy '{rule.glob}'"
        return self.default, ""


@dataclass(frozen=True)
class _Document:
    """A policy as it is written in YAML."""

    weights: tuple[Rule, ...] = ()
    default: Precision = "int8"
    block: int = 0
    tables: bool = False
    keep_fp32_ops: tuple[str, ...] = NORMS


def check_policy(policy: Policy, graphs: Iterable[Path]) -> None:
    """Refuse a policy with a rule that matches no weight of the graphs.

    Raises:
        UgsepError: the first such rule, with the nearest weight name.
    """
    names: set[tuple[str, str]] = set()
    for path in graphs:
        model = load_graph(path)
        names |= {(side_of(model, path), w.name) for w in weights_of(model)}
    check_rules(policy, names)


def check_rules(policy: Policy, names: Iterable[tuple[str, str]]) -> None:
    """Refuse a policy with a rule that matches none of the (side, weight) names; the error of ``check_policy``."""
    names = set(names)
    for rule in policy.rules:
        if not any(rule.matches(side, name) for side, name in names):
            hint = nearest(rule.glob.split(":")[-1], {name for _, name in names})
            raise UgsepError(f"policy '{rule.glob}' matches no weight{hint}; correct or remove the rule")


def policy_from(document: Mapping[str, Any], location: str = "policy") -> Policy:
    """Read a policy from the ``policy`` mapping of a recipe; ``location`` names it in errors.

    Keys: ``default``, ``block``, ``tables``, ``keep_fp32_ops`` and ``weights``, a list of
    ``{glob, precision, reason}`` mappings.

    Raises:
        UgsepError: an unknown key, precision or type.
    """
    read = parse(_Document, document, location)
    if read.block < 0:
        raise UgsepError(
            f"{location}: block is {read.block}; it must be a number of rows >= 0, 0 for one scale per channel"
        )
    return Policy(read.weights, read.default, read.block, read.tables, read.keep_fp32_ops)


def read_policy(path: Path) -> Policy:
    """Read a policy from a YAML file, at the top level or under a ``policy`` key.

    Raises:
        UgsepError: the file is missing, not YAML, or not a policy.
    """
    if not is_regular_file(path, "give a policy file"):
        raise UgsepError(f"'{path}' does not exist; give a policy file")
    document = read_yaml(path.read_bytes(), f"'{path}'")
    if not isinstance(document, Mapping):
        raise UgsepError(f"'{path}' is not a mapping; write default, block and weights")
    return policy_from(document.get("policy", document), f"'{path}'")


def policy_document(policy: Policy) -> dict[str, Any]:
    """Return the mapping that :func:`policy_from` reads back, ready for YAML or JSON."""
    return {
        "default": policy.default,
        "block": policy.block,
        "tables": policy.tables,
        "keep_fp32_ops": list(policy.keep_fp32_ops),
        "weights": [{"glob": r.glob, "precision": r.precision, "reason": r.reason} for r in policy.rules],
    }
