"""Recipes: one commented YAML file per model, from architecture to gates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from graphs.base import config as config_file
from graphs.base.errors import UgsepError, nearest
from graphs.base.regular_file import is_regular_file
from graphs.base.yaml_text import read_yaml, write_yaml

RECIPES = Path(__file__).parent
AUTO = "auto"  # choose the backend by measuring
MAX_THREADS = 4096
MAX_ROWS = 2**31 - 1  # runtimes hold sizes as int32


@dataclass(frozen=True)
class Quantization:
    """The scheme, its options, and the per-weight policy (``quant.policy.policy_from``).

    ``compare`` names the schemes that a build from real requests compares in its report.
    """

    scheme: str = "mse"
    options: dict[str, Any] = field(default_factory=dict)
    policy: dict[str, Any] = field(default_factory=dict)
    compare: tuple[str, ...] = ()


@dataclass(frozen=True)
class Serving:
    """Which engines are built and how they run.

    ``precision`` is that of the serving backend, by side (see ``PRECISIONS`` of the backends); ``compile_for`` lists
    further backends to compile the W8A16 graphs for, if this machine can; ``candidates`` are the request sizes to
    measure, of which the last is reported; ``threads`` is pinned in the engines. Engines are tuned for one user and
    accept up to ``max_users`` and ``max_candidates`` per call. ``state``: what user states are kept in and
    handed over in by engines that compute in FP32 or int8; ``fp16`` takes half the bytes, under the same gates.

    Raises:
        UgsepError: no request size, or a size or thread count that is out of range.
    """

    backend: str = "onnxruntime"
    precision: dict[str, str] = field(default_factory=lambda: {"user": "w8a8-dynamic", "item": "w8a32"})
    compile_for: tuple[str, ...] = ("tensorrt-rtx",)
    threads: int = 1
    candidates: tuple[int, ...] = (1, 64, 256)
    max_candidates: int = 1024
    max_users: int = 16
    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    state: Literal["fp32", "fp16"] = "fp32"

    def __post_init__(self) -> None:
        if not self.candidates:
            raise UgsepError("serving.candidates is empty; give one or more request sizes, e.g. [1, 64, 256]")
        sizes = [(f"candidates[{i}]", size) for i, size in enumerate(self.candidates)]
        sizes += [("threads", self.threads), ("max_candidates", self.max_candidates), ("max_users", self.max_users)]
        for name, value in sizes:
            most = MAX_THREADS if name == "threads" else MAX_ROWS
            if not 1 <= value <= most:
                raise UgsepError(f"serving.{name} is {value}; it must be from 1 to {most}")


@dataclass(frozen=True)
class Gates:
    """The bounds of a build (docs/architecture.md, gates); a build that misses one fails.

    ``split_max_abs`` bounds FP32 scores against the whole PyTorch model; ``auc_change`` applies if there are labels.
    ``same_experts_probability`` is ``max_probability`` for rows that top-k routers send to the same experts as FP32,
    ``rerouted_rows`` the share of rows that may go to others; both apply if the engines' routers can be read.
    ``fraction_of_limit`` is the share of the speed-up limit to reach at the largest request size; 0 only reports it.
    """

    split_max_abs: float = 1e-5
    sqnr_db: float = 35.0
    kendall_tau: float = 0.99
    max_probability: float = 5e-3
    same_experts_probability: float = 5e-3
    rerouted_rows: float = 0.1
    auc_change: float = 1e-4
    invariance: float = 1e-5
    fraction_of_limit: float = 0.0
    request_p99_ms: float = 0.0


@dataclass(frozen=True)
class Recipe:
    """How one model is built: architecture and its settings, training, quantization, serving and gates."""

    model: str
    config: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    quantization: Quantization = field(default_factory=Quantization)
    serving: Serving = field(default_factory=Serving)
    gates: Gates = field(default_factory=Gates)


_DEEPEST = 8  # sections around a setting; no recipe has more than 3
_SHOWN = 100  # characters of a setting in a message


def recipe_names() -> tuple[str, ...]:
    """Return the names of the shipped recipes, sorted."""
    return tuple(sorted(p.stem for p in RECIPES.glob("*/*.yaml")))


def load_recipe(name: str, changes: Sequence[str] = ()) -> Recipe:
    """Return a shipped recipe by name, or the one in a YAML file.

    ``changes`` are settings to replace, such as ``config.user_tokens=12``, with YAML values.

    Raises:
        UgsepError: unknown name (with the nearest), unreadable file, unknown setting, or value of the wrong type.
    """
    shipped = {p.stem: p for p in RECIPES.glob("*/*.yaml")}
    path = Path(name) if name.endswith((".yaml", ".yml")) else shipped.get(name, RECIPES / f"{name}.yaml")
    if not is_regular_file(path, "give a YAML file"):
        if path == Path(name):
            raise UgsepError(f"{path}: no such recipe file; give an existing file, or a model from 'ugsep models'")
        raise UgsepError(f"unknown model '{name}'{nearest(name, recipe_names())}")
    values = read_yaml(path.read_bytes(), str(path))
    for change in changes:
        _change(values, change)
    return config_file.parse(Recipe, values or {}, path.name)


def default_recipe(model: str, changes: Sequence[str] = ()) -> Recipe:
    """Return the recipe of a model that has none: all defaults, with ``changes`` as in ``load_recipe``.

    Raises:
        UgsepError: an unknown setting, or a value of the wrong type.
    """
    values: dict[str, Any] = {"model": model}
    for change in changes:
        _change(values, change)
    return config_file.parse(Recipe, values, f"the recipe of {model}")


def _change(values: Any, change: str) -> None:
    """Replace one setting of a recipe's mapping in place."""
    key, equals, text = change.partition("=")
    *sections, last = key.split(".")
    if not equals or not last or len(sections) > _DEEPEST:
        raise UgsepError(
            f"{_cut(change)} is not a valid setting; write section.name=value, as in config.user_tokens=12"
        )
    for done, section in enumerate((*sections, last)):
        if not isinstance(values, dict):
            raise UgsepError(f"{_cut('.'.join(sections[:done]))} is not a section of the recipe; set it as a whole")
        if done < len(sections):
            values = values.setdefault(section, {})
    values[last] = read_yaml(text, f"the value of {_cut(key)}")


def _cut(name: str) -> str:
    return f"'{name}'" if len(name) <= _SHOWN else f"'{name[:_SHOWN]}...'"


def dump_recipe(recipe: Recipe) -> str:
    """Return the recipe with every default filled in, as YAML that ``load_recipe`` reads back."""
    return write_yaml(config_file.to_mapping(recipe))
