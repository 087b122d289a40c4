"""What was built: an engine's files, inputs, outputs and weights, as the manifest holds them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from engines.backends.engine_spec import Option, Profile
from graphs.base.names import GraphSide

#: How an engine runs one weight, as read back from what the runtime compiled.
WeightStatus = Literal["fused-int8", "gathered-int8", "dequantized-each-run", "folded-to-float", "float", "missing"]


@dataclass(frozen=True)
class TensorSpec:
    """One input or output: name, NumPy dtype name, shape with a string for a dynamic axis."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class EngineWeight:
    """What the compiled engine does with one GEMM weight; ``detail`` names the node, kernel or layer."""

    name: str
    status: WeightStatus
    detail: str = ""


@dataclass(frozen=True)
class BuiltEngine:
    """A finished build: everything ``load`` needs except the files themselves; stored in the manifest as is.

    ``files`` are relative to the build's directory, ``bytes`` is their sum, ``session`` the pinned runtime
    settings, ``requires`` what the machine must have (``isa`` or ``compute_capability``), ``tools`` the
    versions that made it, ``figures`` numbers worth reporting (seconds to build, size ratios).
    """

    backend: str
    side: GraphSide
    precision: str
    files: tuple[str, ...]
    bytes: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    session: Mapping[str, Option] = field(default_factory=dict)
    requires: Mapping[str, str] = field(default_factory=dict)
    tools: Mapping[str, str] = field(default_factory=dict)
    profiles: tuple[Profile, ...] = ()
    weights: tuple[EngineWeight, ...] = ()
    figures: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def max_candidates(self) -> int:
        """The most candidates any profile accepts; 0 if the engine has no profiles and thus no limit."""
        return max((p.candidates.max for p in self.profiles), default=0)
