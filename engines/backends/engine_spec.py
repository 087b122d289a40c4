"""What to build: the rows an engine takes, its precision and the options of its backend."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from graphs.base.errors import UgsepError
from graphs.base.names import GraphSide

Option = str | int | float | bool

#: What a precision means: how weights are stored, and what the GEMMs multiply.
PRECISIONS: dict[str, str] = {
    "fp32": "FP32 weights, FP32 GEMMs",
    "fp16": "FP16 weights, FP16 GEMMs",
    "bf16": "FP32 weights on disk, BF16 GEMMs",
    "w8a16": "int8 weights, FP16 activations",
    "w8a32": "int8 weights, FP32 activations and exact FP32 GEMMs",
    "w8a8-dynamic": "int8 weights, activations quantized to int8 per row while running",
    "w8a8-static": "int8 weights, activations quantized to int8 with calibrated scales",
}


@dataclass(frozen=True)
class Rows:
    """The rows of a dynamic axis: minimum, the number that kernels are tuned for, maximum."""

    min: int = 1
    opt: int = 1
    max: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.min <= self.opt <= self.max:
            raise UgsepError(f"profile rows {self.min}/{self.opt}/{self.max}: need 1 <= min <= opt <= max")


@dataclass(frozen=True)
class Profile:
    """One bucket of input sizes: rows of the ``users`` axis and of the ``candidates`` axis."""

    users: Rows = field(default_factory=Rows)
    candidates: Rows = field(default_factory=lambda: Rows(1, 256, 1024))

    @property
    def name(self) -> str:
        """The bucket in words: ``users 1-1, candidates 65-256 (most often 256)``."""
        users, rows = self.users, self.candidates
        return f"users {users.min}-{users.max}, candidates {rows.min}-{rows.max} (most often {rows.opt})"


@dataclass(frozen=True)
class BuildSpec:
    """What to build: one ONNX file (of the variant ``Backend.ONNX_VARIANT[precision]``) at one precision.

    ``half_state``: user state crosses from engine to engine as float16, whatever the engines compute in.
    ``scratch``: a folder for what speeds up later builds, such as kernel timings; not part of the result.
    """

    side: GraphSide
    onnx: Path
    precision: str
    profiles: tuple[Profile, ...] = (Profile(),)
    options: Mapping[str, Option] = field(default_factory=dict)
    scratch: Path | None = None
    half_state: bool = False


def usual_rows(spec: BuildSpec) -> int:
    """Return how many rows the engine is tuned for: the largest ``opt`` of its profiles on its own side's axis."""
    return max((p.users.opt if spec.side == "user" else p.candidates.opt) for p in spec.profiles)
