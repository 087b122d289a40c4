"""``python -m benchmarks.split``: the speed-up of a split against the machine's limit, and what accounts for the gap.

In the limit, the item side is compute-bound: its FLOPs at the rate the whole model reaches. The user side is
memory-bound: at one row a GEMM reads each weight once for two FLOPs, so it takes weight bytes over memory bandwidth.
"""

from __future__ import annotations

import json
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import torch

from engines.backends.contract import Array
from engines.backends.onnxruntime.variants import ONE_USER, variant_file
from engines.build.graph_exports import export_graphs
from engines.build.source_model import load_source_model, random_requests, split_source_model
from engines.build.sources import Sources
from engines.cli.group import Command
from engines.compile.compile import EnginePlan, compile_engine, load_built
from engines.measure.copy_rate import measure_copy_gb_s
from engines.measure.process_memory import resident_bytes
from engines.recipes.recipe import Recipe, load_recipe
from engines.render.markdown import table
from engines.serve.ranker import Ranker
from engines.verify.latency import RequestLatency, measure_latency
from graphs.base.errors import UgsepError, nearest
from graphs.base.names import GraphSide
from quant.schemes.schemes import scheme_from
from quant.weights import quantize_side

CANDIDATES = 256
_PROFILED_RUNS = 5
_READ_BYTES = 512 << 20  # larger than any cache

#: Name -> a shipped recipe and the settings changed in it.
CASES: dict[str, tuple[str, tuple[str, ...]]] = {
    "rankmixer-1:1": ("rankmixer-100m", ("config.user_tokens=8", "config.item_tokens=8", "config.hidden=3072")),
    "rankmixer-3:1": ("rankmixer-100m", ("config.user_tokens=12", "config.item_tokens=4", "config.hidden=3072")),
    "tokenmixer-large-3:1": (
        "tokenmixer-large-20m",
        ("config.user_tokens=12", "config.item_tokens=4", "config.width=768", "config.hidden=768"),
    ),
}
#: Size of the user weights relative to FP32, by precision of the user engine.
USER_PRECISIONS = {"fp32": 1.0, "w8a8-dynamic": 0.25}


@dataclass(frozen=True)
class SplitRun:
    """One case: latencies at ``CANDIDATES`` rows, the terms of the limit, and milliseconds by op and graph.

    ``read_gb_s``: memory bandwidth of one thread; ``user_bytes``: weight bytes the user side reads per request;
    ``item_share``: FLOPs of the item side over those of the whole model.
    """

    case: str
    precision: str
    latency: RequestLatency
    item_share: float
    user_bytes: float
    read_gb_s: float
    ops: Mapping[GraphSide, Mapping[str, float]]

    @property
    def limit(self) -> float:
        """The speed-up if the item side ran at the whole model's FLOP rate and the user side at memory bandwidth."""
        full = self.latency.full_fp32.p50
        return full / (full * self.item_share + self.user_bytes / self.read_gb_s / 1e6)

    @property
    def fraction(self) -> float:
        """Measured speed-up over the limit."""
        return self.latency.speedup / self.limit

    def row(self) -> str:
        """Return the case as a row of a Markdown table."""
        at = self.latency
        times = f"{at.full_fp32.p50:.1f} | {at.user.p50:.1f} | {at.item.p50:.1f} | {at.request.p50:.1f}"
        ideal = f"{self.user_bytes / self.read_gb_s / 1e6:.1f} | {at.full_fp32.p50 * self.item_share:.1f}"
        return (
            f"| {self.case} | {self.precision} | {times} | {ideal} | {self.limit:.2f}x | {at.speedup:.2f}x | "
            f"{self.fraction:.2f} |"
        )

    def profile(self, least: float = 0.01) -> list[str]:
        """Return a Markdown table of milliseconds per op and graph, without ops below ``least`` of the item graph."""
        names = {op for by_op in self.ops.values() for op in by_op}
        full, item = self.ops["full"], self.ops["item"]
        floor = least * sum(item.values())
        rows = []
        for op in sorted(names, key=lambda o: -(item.get(o, 0.0) + self.ops["user"].get(o, 0.0))):
            whole = full.get(op, 0.0)
            cells = [whole, whole * self.item_share, item.get(op, 0.0), self.ops["user"].get(op, 0.0)]
            if max(cells) >= floor:
                rows.append([op, *(f"{c:.2f}" for c in cells)])
        return table(("op", "whole", "its item share", "item graph", "user graph"), rows, "lllll")


def read_bandwidth(rounds: int = 7) -> float:
    """Return the memory bandwidth of one thread in GB/s: the faster of summing and copying a large array."""
    torch.set_num_threads(1)
    source = torch.ones(_READ_BYTES // 4)
    fastest = float("inf")
    for _ in range(rounds):
        started = time.perf_counter()
        source.sum()
        fastest = min(fastest, time.perf_counter() - started)
    return max(_READ_BYTES / fastest / 1e9, measure_copy_gb_s())


def bench(case: str, recipe: Recipe, precision: str, candidates: int = CANDIDATES) -> SplitRun:
    """Build the FP32 whole model, the user engine at ``precision`` and the FP32 item engine; time and profile them.

    All run on ONNX Runtime with one thread and the same lowering, interleaved; weights are random.

    Raises:
        UgsepError: the recipe declares no features, or onnxruntime is missing.
    """
    torch.set_num_threads(1)
    source_model = load_source_model(recipe, Sources(None))
    split_model = split_source_model(source_model)
    request = random_requests(source_model, split_model, 1, candidates, seed=1)[0]
    with tempfile.TemporaryDirectory(prefix="ugsep-split-bench-") as scratch:
        folder = Path(scratch)
        onnx = export_graphs(case, source_model, split_model, folder / "onnx")
        if precision != "fp32":
            quantize_side(onnx["user"], folder / "onnx", scheme=scheme_from("absmax"))
        engines = {
            side: compile_engine(
                recipe, EnginePlan(side, "onnxruntime", precision if side == "user" else "fp32"), path, folder
            )
            for side, path in onnx.items()
        }
        with ExitStack() as stack:
            runners = {
                side: stack.enter_context(closing(load_built(built, folder))) for side, built in engines.items()
            }
            ranker = Ranker(runners["user"], runners["item"], engines["user"], engines["item"])
            bandwidth = read_bandwidth()
            limits = {candidates: split_model.speedup_limit(candidates)}
            latency = measure_latency(runners["full"], ranker, request, limits)[0]
            feeds = _feeds(ranker, request.user, request.items, candidates)
        files = {side: f"{side}.onnx" for side in onnx} | (
            {"item": variant_file("item", ONE_USER)} if ranker.broadcasts else {}
        )
        ops = {side: _profile(folder / files[side], feeds[side]) for side in onnx}
    return SplitRun(
        case,
        precision,
        latency,
        split_model.item_cost.flops / split_model.full_cost.flops,
        split_model.user_cost.weight_bytes * USER_PRECISIONS[precision],
        bandwidth,
        ops,
    )


def split_only(recipe: Recipe) -> str:
    """Split a model with random weights; return its size, the time taken and the memory added, as one line."""
    source_model = load_source_model(recipe, Sources(None))
    parameters = sum(p.numel() for p in source_model.module.parameters())
    held, sizes, done = resident_bytes(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            sizes.append(resident_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    split_model = split_source_model(source_model)
    seconds = time.perf_counter() - started
    done.set()
    watcher.join()
    own = {p.untyped_storage().data_ptr() for p in source_model.module.parameters()}
    weights = [
        p for graph in (split_model.full, split_model.user, split_model.item) for p in graph.module.parameters()
    ]
    copied = sum(p.nbytes for p in weights if p.untyped_storage().data_ptr() not in own)
    return (
        f"{parameters / 1e9:.2f} B parameters, {held / 1e9:.2f} GB resident: split in {seconds:.1f} s, at most "
        f"{max(0, max(sizes) - held) / 1e6:.0f} MB more, {copied} bytes of weights copied"
    )


def _feeds(
    ranker: Ranker, user: Mapping[str, Array], items: Mapping[str, Array], candidates: int
) -> dict[GraphSide, dict[str, Array]]:
    rows = {name: np.repeat(value, candidates, axis=0) for name, value in user.items()}
    state = ranker.user_state(user)
    return {
        "full": {**rows, **items},
        "user": dict(user),
        "item": {**items, **state, **ranker.one_user_index(candidates)},
    }


def _profile(file: Path, feeds: Mapping[str, Array]) -> dict[str, float]:
    """Return milliseconds per run by op type, from ONNX Runtime's profiler."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.enable_profiling, options.profile_file_prefix = True, str(file.with_suffix(""))
    profiled = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    names = [i.name for i in profiled.get_inputs()]
    for _ in range(_PROFILED_RUNS):
        profiled.run(None, {name: feeds[name] for name in names})
    events = json.loads(Path(profiled.end_profiling()).read_text())
    taken: dict[str, float] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            op = event["args"]["op_name"]
            taken[op] = taken.get(op, 0.0) + event["dur"] / 1e3 / _PROFILED_RUNS
    return taken


@click.command(cls=Command)
@click.option("--case", "cases", multiple=True, help="Measure only this case; repeatable.")
@click.option("--precision", "precisions", multiple=True, help="Precision of the user engine  [default: all]")
@click.option("--profile/--no-profile", default=True, show_default=True, help="Also print milliseconds by op.")
@click.option("--split-only", "recipe", help="Only split the model of this recipe and print time and memory.")
def main(cases: Sequence[str], precisions: Sequence[str], profile: bool, recipe: str | None) -> None:
    """Print the limit, the measured speed-up and their ratio for every case as Markdown, with profiles."""
    if recipe is not None:
        click.echo(split_only(load_recipe(recipe)))
        return
    for given, known in ((cases, CASES), (precisions, USER_PRECISIONS)):
        for name in given:
            if name not in known:
                raise UgsepError(f"unknown '{name}'{nearest(name, known)}")
    click.echo(
        "| case | user engine | whole ms | user ms | item ms | request ms | user limit ms | item limit ms | "
        "limit | measured | fraction |\n|---|---|---|---|---|---|---|---|---|---|---|"
    )
    found = []
    for case in cases or CASES:
        base, changes = CASES[case]
        for precision in precisions or USER_PRECISIONS:
            found.append(bench(case, load_recipe(base, changes), precision))
            click.echo(found[-1].row())
    for one in found if profile else ():
        click.echo(f"\n{one.case}, {one.precision}, {one.read_gb_s:.1f} GB/s\n\n" + "\n".join(one.profile()))


if __name__ == "__main__":
    main()
