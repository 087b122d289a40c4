"""Our pairs of engines: those a bundle holds, and further ones built for the run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from engines.backends.contract import BuiltEngine
from engines.backends.table import find_backend
from engines.bench.contender import Pair, pair_name
from engines.bundle.manifest import Engine, Manifest, engine_for
from engines.compile.compile import EnginePlan, compile_engine
from engines.recipes.recipe import Recipe
from export.metadata import GraphSide
from graphs.base.errors import UgsepError
from graphs.base.progress import Progress, ProgressCallback, silent

#: What a side runs: backend and precision.
Kind = tuple[str, str]

_FP32: Kind = ("onnxruntime", "fp32")
#: Pairs built on the spot beside the bundle's own: user side and item side. The mixed ones are what
#: ``--backend auto`` can pick, as it looks at each side apart.
EXTRA_PAIRS: tuple[tuple[Kind, Kind], ...] = (
    (_FP32, _FP32),
    (("onnxruntime", "w8a8-dynamic"), ("onnxruntime", "w8a8-dynamic")),
    (("openvino", "fp32"), ("openvino", "fp32")),
    (("openvino", "bf16"), ("openvino", "bf16")),
    (("openvino", "w8a8-dynamic"), ("openvino", "w8a8-dynamic")),
    (("onnxruntime", "w8a8-dynamic"), ("openvino", "bf16")),
)


def bundle_pairs(bundle: Path, manifest: Manifest) -> tuple[list[Pair], dict[str, str]]:
    """Return the pairs of engines in a bundle that this machine can run, the chosen one first, and why not others.

    Raises:
        UgsepError: the chosen engines cannot run here.
    """
    chosen = _pair(bundle, engine_for(manifest, "user"), engine_for(manifest, "item"))
    pairs, left_out = [chosen], {}
    for name in dict.fromkeys(e.built.backend for e in manifest.engines):
        here = find_backend(name).probe()
        if not here.can_run:
            if name in (chosen.user.backend, chosen.item.backend):
                raise UgsepError(
                    f"{bundle}: its engines cannot run here ({here.reason}); rebuild: {manifest.rebuild}"
                )
            left_out[f"ugsep {name}"] = here.reason
            continue
        sides = {e.built.side: e for e in reversed(manifest.engines) if e.built.backend == name}
        if "user" in sides and "item" in sides:
            pairs.append(_pair(bundle, sides["user"], sides["item"]))
    return list({pair.name: pair for pair in reversed(pairs)}.values())[::-1], left_out


def _pair(bundle: Path, user: Engine, item: Engine) -> Pair:
    return Pair(user.built, bundle / user.directory, item.built, bundle / item.directory)


def extra_pairs(
    recipe: Recipe,
    onnx: Path,
    folder: Path,
    taken: Sequence[str],
    which: Sequence[tuple[Kind, Kind]] = EXTRA_PAIRS,
    progress: ProgressCallback = silent,
) -> tuple[list[Pair], dict[str, str]]:
    """Build further pairs from the graphs in ``onnx``; returns them, and the reason for each that cannot be built.

    Pairs whose name is in ``taken`` are left alone. Raises UgsepError for ONNX Runtime's FP32 pair only: it is the
    split itself, without which there is nothing to compare.
    """
    pairs: list[Pair] = []
    left_out: dict[str, str] = {}
    engines: dict[Path, BuiltEngine] = {}

    def engine(side: GraphSide, kind: Kind) -> tuple[BuiltEngine, Path]:
        target = folder / f"{side}.{kind[0]}.{kind[1]}"
        if target not in engines:
            target.mkdir(parents=True, exist_ok=True)
            engines[target] = compile_engine(recipe, EnginePlan(side, *kind), onnx / f"{side}.onnx", target)
        return engines[target], target

    for user, item in which:
        name = pair_name(user, item)
        if name in taken:
            continue
        progress(Progress("build pairs", len(pairs), None, name))
        try:
            pairs.append(Pair(*engine("user", user), *engine("item", item)))
        except UgsepError as error:
            if user == item == _FP32:
                raise
            left_out[f"ugsep {name}"] = str(error)
    return pairs, left_out
