"""What people write in YAML: recipes, ``--set`` options and policies."""

from __future__ import annotations

import random
from pathlib import Path

import yaml

from benchmarks.reliability.fuzz.guided.parser import Parser
from benchmarks.reliability.fuzz.mutate.yaml_text import mutate_setting, mutate_yaml
from benchmarks.reliability.fuzz.sound_texts import POLICY, RECIPE
from engines.recipes.recipe import dump_recipe, load_recipe
from quant.policy import policy_document, policy_from, read_policy

__all__ = ["policy", "recipe", "setting"]

_SETTINGS = ("config.width=32", "gates.sqnr_db=1e1", "serving.candidates=[1, 2]", "quantization.options.x.y={a: b}")


def recipe(folder: Path) -> Parser:
    """A recipe file; what is accepted must be the same after it was written and read again."""
    path, again = folder / "small.yaml", folder / "again.yaml"

    def parse(data: bytes) -> None:
        path.write_bytes(data)
        found = load_recipe(str(path))
        again.write_text(dump_recipe(found), encoding="utf-8")
        if load_recipe(str(again)) != found:
            raise AssertionError("a recipe is another one after it was written and read again")

    return Parser(parse, (RECIPE.encode(),), _mutated_yaml)


def setting(folder: Path) -> Parser:
    """A ``--set`` option on a sound recipe."""
    path = folder / "small.yaml"
    path.write_text(RECIPE)
    document = yaml.safe_load(RECIPE)
    keys = [f"{section}.{key}" for section, values in document.items() if isinstance(values, dict) for key in values]

    def parse(data: bytes) -> None:
        load_recipe(str(path), [data.decode("utf-8", "replace").replace("\0", "")])  # no argument holds a zero

    def mutate(_: bytes, rng: random.Random) -> bytes:
        return mutate_setting(rng.choice(keys), rng).encode()

    return Parser(parse, tuple(text.encode() for text in _SETTINGS), mutate)


def policy(folder: Path) -> Parser:
    """A file of precisions; what is accepted must be the same after it was written and read again."""
    path = folder / "policy.yaml"

    def parse(data: bytes) -> None:
        path.write_bytes(data)
        found = read_policy(path)
        if policy_from(policy_document(found)) != found:
            raise AssertionError("a policy is another one after it was written and read again")

    return Parser(parse, (POLICY.encode(),), _mutated_yaml)


def _mutated_yaml(data: bytes, rng: random.Random) -> bytes:
    if b"&" in data:
        raise ValueError("the values of aliases in aliases do not fit in memory")
    return mutate_yaml(data.decode(), rng)
