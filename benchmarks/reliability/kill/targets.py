"""The table of what is killed."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection
from pathlib import Path

from benchmarks.reliability.kill.target import Argv, Target, Tree
from benchmarks.reliability.kill.trees import difference, tree
from benchmarks.reliability.small_model import OPTIONS
from engines.bundle.bundle import Bundle
from engines.bundle.files import unlisted_files
from engines.compile.cache import list_entries
from graphs.base.errors import UgsepError
from quant.calibration.files import load_calibration

_STEPS = "benchmarks.reliability.kill.steps"
_TIMED = ("manifest.json", "report.json", "report.html")  # of a bundle: they hold measured times


def targets(old: Path, new: Path, recipe: Path, features: Path, checkpoint: Path) -> list[Target]:
    """Return the targets.

    Args:
        old: a bundle of the small model.
        new: another, of the seed 1.
        recipe: a recipe of the smallest Zenith, for ``ugsep stream``.
        features: its features.json.
        checkpoint: its checkpoint.
    """
    factory = str(Path(__file__).parents[1] / "small_model.py") + ":make"
    build = ("ugsep", "build", factory, *OPTIONS, "--recipe", str(old / "recipe.yaml"), "--force", "--no-cache")

    def copied(*sources: tuple[Path, str]) -> Callable[[Path], None]:
        def start(folder: Path) -> None:
            for source, name in sources:
                shutil.copytree(source, folder / name)

        return start

    def publish(folder: Path) -> list[Argv]:
        return [(_STEPS, "publish", str(new), str(folder / "bundle"))]

    def publish_both(folder: Path) -> list[Argv]:
        return [(_STEPS, "publish", str(source), str(folder / "bundle")) for source in (old, new)]

    def engines(folder: Path) -> list[Argv]:
        return [(_STEPS, "engines", str(new), str(folder / "out"), "--cache", str(folder / "cache"))]

    def calibrate(folder: Path) -> list[Argv]:
        return [("quant", "calibrate", str(new), "--synthetic", "600", "--out", str(folder / "calibration"))]

    def weights(folder: Path) -> list[Argv]:
        return [("quant", "weights", str(new), "--scheme", "absmax", "--out", str(folder / "weights"))]

    def stream(folder: Path) -> list[Argv]:
        return [("ugsep", "stream", str(recipe), "--checkpoint", str(checkpoint), "--out", str(folder / "onnx"))]

    bundles = copied((old, "bundle"))
    calibrations = copied((old / "onnx", "onnx"), (old, "calibration"))
    return [
        Target("publishing over a bundle", bundles, publish, _whole("bundle")),
        Target("two builders in one folder, publishing", bundles, publish_both, _whole("bundle", old, new),
               refusals=("another process is building here",)),
        Target("engine cache", _nothing, engines, _sound_cache, volatile=("engine.json",)),
        Target("quant calibrate", calibrations, calibrate, _calibration),
        Target("quant weights", copied((old / "onnx", "weights")), weights, _graphs("weights")),
        Target("ugsep stream", _nothing, stream, _graphs("onnx")),
        Target("ugsep build over a bundle", bundles,
               lambda folder: [(*build, "--out", str(folder / "bundle"))], _bundle,
               volatile=_TIMED, environ={"SMALL_MODEL_SEED": "1"}),
    ]  # fmt: skip


def _nothing(_: Path) -> None:
    """Start in an empty folder."""


def _part(found: Tree, name: str) -> dict[str, str]:
    return {path: content for path, content in found.items() if path.split("/")[0] == name}


def _whole(name: str, *others: Path) -> Callable[[Path, Tree, Tree], str]:
    """Return a check that a folder is exactly what was there before, or what a whole run leaves."""

    def problem(folder: Path, before: Tree, after: Tree) -> str:
        found = _part(tree(folder), name)
        allowed = [_part(before, name), _part(after, name)]
        allowed += [{name: "folder", **{f"{name}/{path}": c for path, c in tree(other).items()}} for other in others]
        return "" if found in allowed else f"neither old nor new: {difference(found, allowed[-1])}"

    return problem


def _bundle(folder: Path, before: Tree, after: Tree) -> str:
    """Check that a bundle is intact, without files of its own or another one's."""
    bundle = folder / "bundle"
    try:
        manifest = Bundle.open(bundle).manifest
    except UgsepError as error:
        return f"not intact: {error}"
    strange = unlisted_files(bundle, manifest.files)
    return f"unlisted: {strange[0]}" if strange else _mixed(_part(tree(folder), "bundle"), before, after, _TIMED)


def _mixed(found: Tree, before: Tree, after: Tree, volatile: Collection[str] = ()) -> str:
    """Check that a part is as before or as after as a whole."""
    name = next(iter(found), "").split("/")[0]
    problems = [difference(found, _part(tree, name), volatile) for tree in (before, after)]
    return "" if "" in problems else f"neither old nor new: {problems[-1]}"


def _sound_cache(folder: Path, before: Tree, after: Tree) -> str:
    damaged = [entry for entry in list_entries(folder / "cache", verify=True) if entry.problem]
    return f"damaged entry {damaged[0].key}: {damaged[0].problem}" if damaged else ""


def _calibration(folder: Path, before: Tree, after: Tree) -> str:
    """Check that a calibration is the old or the new one, or refused because its files are of two runs."""
    files = ("calibration/calibration.json", "calibration/calibration.safetensors")
    found = tree(folder)
    if any(all(found.get(name) == known.get(name) for name in files) for known in (before, after)):
        return ""
    try:
        load_calibration(folder / "calibration")
    except UgsepError as error:
        return "" if "of different runs" in str(error) else f"unexpected refusal: {error}"
    return "a mixed calibration is accepted"


def _graphs(name: str) -> Callable[[Path, Tree, Tree], str]:
    """Return a check that every graph there is has the data it was written with."""

    def problem(folder: Path, before: Tree, after: Tree) -> str:
        found = tree(folder)
        for path in (path for path in found if path.startswith(f"{name}/") and path.count("/") == 1):
            if not path.endswith((".w8a32.onnx", ".w8a16.onnx")):
                continue
            data = f"{name}/{path.split('/')[1].split('.')[0]}.int8.data"
            pair = {file: found.get(file) for file in (path, data)}
            if not any(
                all(known.get(file) == content for file, content in pair.items()) for known in (before, after)
            ):
                return f"{path} with data of another run"
        return ""

    return problem
