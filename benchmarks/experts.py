"""``python -m benchmarks.experts``: the overhead of routing rows to experts, beyond the FLOPs of the chosen experts.

Compares a sparse-MoE layer with a dense layer of equal active FLOPs (one SwiGLU as wide as all experts of a row).
The onnxruntime backend builds and runs both, and their timings are interleaved.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click
import numpy as np
import torch
from torch import Tensor, nn

from engines.backends.build import build_engine
from engines.backends.engine_spec import BuildSpec, Profile, Rows
from engines.backends.table import find_backend
from engines.bench.machine import this_machine
from engines.cli.group import Command
from engines.measure.interleave import interleaved
from engines.render.markdown import table
from engines.verify.checks import Check
from export.metadata import Stamp
from export.onnx_file import export_subgraph
from graphs.base.errors import GateFailed
from graphs.base.progress import show_progress
from graphs.layers.moe import SoftmaxRouter, SwiGLUExperts
from graphs.layers.tokenwise import TokenwiseSwiGLU
from graphs.split.split import Subgraph

TARGET = 1.3  # routed over dense time at N = 256, E = 8, k = 2
#: Width and hidden units of one expert.
SIZES = ((256, 256), (512, 256), (768, 768))
# Reordering FP32 sums of up to 768 products of order 1 / sqrt(768) stays within this tolerance.
SAME = 1e-4


@dataclass(frozen=True)
class LayerSizes:
    """T tokens of ``width``, each with its own ``experts`` of ``hidden`` units; every row uses ``active`` of them."""

    tokens: int
    width: int
    hidden: int
    experts: int
    active: int

    def active_flops(self, rows: int) -> int:
        """FLOPs of the chosen experts' three GEMMs."""
        return 2 * 3 * self.tokens * rows * self.active * self.width * self.hidden


@dataclass(frozen=True)
class RoutingCost:
    """p50 in milliseconds of both layers for ``rows`` rows."""

    sizes: LayerSizes
    rows: int
    routed_ms: float
    dense_ms: float

    @property
    def ratio(self) -> float:
        """Routed over dense time at equal active FLOPs."""
        return self.routed_ms / self.dense_ms


class Routed(nn.Module):
    """Router and routed experts, batch first: [N, T, D] -> [N, T, D]."""

    def __init__(self, sizes: LayerSizes) -> None:
        super().__init__()
        self.router = SoftmaxRouter(sizes.tokens, sizes.width, sizes.experts, sizes.active)
        self.experts = SwiGLUExperts(sizes.tokens, sizes.experts, sizes.width, sizes.hidden)

    def forward(self, x: Tensor) -> Tensor:
        """Return the gated sum of each row's experts."""
        tokens = x.transpose(0, 1)
        y: Tensor = self.experts(tokens, self.router(tokens))
        return y.transpose(0, 1)


class Dense(nn.Module):
    """One SwiGLU per feature token, as wide as all experts of a row: [N, T, D] -> [N, T, D]."""

    def __init__(self, sizes: LayerSizes) -> None:
        super().__init__()
        self.network = TokenwiseSwiGLU(sizes.tokens, sizes.width, sizes.active * sizes.hidden)

    def forward(self, x: Tensor) -> Tensor:
        """Return the transform of each feature token."""
        y: Tensor = self.network(x.transpose(0, 1))
        return y.transpose(0, 1)


def measure_routing(sizes: LayerSizes, rows: int = 256, rounds: int = 20) -> RoutingCost:
    """Build both layers with random weights, check their outputs against PyTorch, and time them on one thread.

    Raises:
        GateFailed: the output of a layer differs from PyTorch.
        UgsepError: ONNX Runtime is missing.
    """
    torch.manual_seed(0)
    x = torch.randn(rows, sizes.tokens, sizes.width)
    calls: dict[str, Callable[[], object]] = {}
    with tempfile.TemporaryDirectory(prefix="ugsep-experts-") as scratch, ExitStack() as stack:
        for name, layer in (("routed", Routed(sizes)), ("dense", Dense(sizes))):
            run = _loaded(layer.eval(), x, Path(scratch) / name, stack)
            with torch.no_grad():
                error = float(np.abs(run()["y"] - layer(x).numpy()).max())
            if not error <= SAME:
                raise GateFailed(f"the {name} layer differs from PyTorch by {error:.2g} > {SAME:g}")
            calls[name] = run
        found = interleaved(calls, rounds)
    return RoutingCost(sizes, rows, found["routed"].p50, found["dense"].p50)


def _loaded(layer: nn.Module, x: Tensor, folder: Path, stack: ExitStack) -> Callable[[], dict[str, np.ndarray]]:
    traced = torch.export.export(layer, (x,), dynamic_shapes=({0: torch.export.Dim("candidates")},), strict=False)
    layer_graph = Subgraph(traced.module(), ("x",), ("y",))
    file = export_subgraph(
        layer_graph, {"x": x}, {"x": "candidates"}, folder / "layer.onnx", Stamp("experts", "full", "fp32", ())
    )
    backend = find_backend("onnxruntime")
    profile = Profile(Rows(1, 1, 1), Rows(1, len(x), len(x)))
    built = build_engine(
        backend, BuildSpec("full", file.path, "fp32", (profile,), {"threads": 1}), folder, lambda _: None
    )
    runner = stack.enter_context(closing(backend.load(folder, built)))
    return partial(runner.infer, {"x": x.numpy()})


def markdown(costs: list[RoutingCost]) -> str:
    """Return the table of a run."""
    rows = []
    for c in costs:
        s = c.sizes
        rate = s.active_flops(c.rows) / c.routed_ms / 1e6
        shape = (s.tokens, s.width, s.hidden, s.experts, s.active, c.rows)
        rows.append([*map(str, shape), f"{c.routed_ms:.2f}", f"{c.dense_ms:.2f}", f"{c.ratio:.2f}", f"{rate:.0f}"])
    heads = ("T", "D", "h", "E", "k", "N", "routed ms", "dense ms", "ratio", "routed GFLOP/s")
    return "\n".join(table(heads, rows, "r" * len(heads)))


_COUNT = click.IntRange(min=1)


@click.command(cls=Command)
@click.option(
    "--tokens",
    type=click.IntRange(min=1),
    default=8,
    show_default=True,
    help="Feature tokens, each with its own experts (T).",
)
@click.option("--rows", type=_COUNT, default=256, show_default=True, help="Rows per call (N).")
@click.option("--experts", type=_COUNT, default=8, show_default=True, help="Experts per token (E).")
@click.option("--active", type=_COUNT, default=2, show_default=True, help="Experts that each row uses (k).")
@click.option("--rounds", type=_COUNT, default=20, show_default=True, help="Timed calls per layer.")
def main(tokens: int, rows: int, experts: int, active: int, rounds: int) -> None:
    """Time routed experts against a dense layer with the same active FLOPs."""
    with show_progress():
        costs = [measure_routing(LayerSizes(tokens, d, h, experts, active), rows, rounds) for d, h in SIZES]
    machine = this_machine()
    click.echo(f"{machine.processor}, 1 thread, load {machine.load:.1f}; target: ratio <= {TARGET}\n")
    click.echo(markdown(costs))
    for cost in costs:
        check = Check(f"D {cost.sizes.width}, h {cost.sizes.hidden}: routed over dense time", cost.ratio, TARGET)
        click.echo(f"  {check}")


if __name__ == "__main__":
    main()
