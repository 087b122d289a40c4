"""Bisecting finds the damaged weight, and a failed validation saves rows that fail again."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml
from click.testing import CliRunner
from onnx import numpy_helper

from engines.backends.build import build_engine
from engines.backends.contract import Array
from engines.backends.engine_spec import BuildSpec
from engines.backends.table import find_backend
from engines.bundle.manifest import Engine, engine_for, read_manifest, write_manifest
from engines.cli.main import main
from engines.verify.bisect import bisect, relative_error
from engines.verify.failing_rows import save_worst_rows
from graphs.base.errors import UgsepError
from quant.requests.readers import read_requests
from quant.requests.spec import Request, request_spec

BROKEN = "layers.1.boost.item.up.weight"


def damage(bundle: Path, side: str, weight: str) -> None:
    """Corrupt one weight of a side's engine by 50 %, and update the manifest to match."""
    manifest = read_manifest(bundle)
    engine = engine_for(manifest, side)
    file = bundle / engine.directory / f"{side}.onnx"
    model = onnx.load(file)
    named = [t for t in model.graph.initializer if t.name.split("[")[0] == weight]
    assert named
    for tensor in named:
        values = numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array((values // 2).astype(values.dtype), tensor.name))
    onnx.save(model, file, save_as_external_data=True, location=f"{side}.onnx.data", size_threshold=1024)
    write_manifest(bundle, manifest)


def test_a_sound_bundle_has_no_first_tensor(built_bundle: Path) -> None:
    for side in bisect(built_bundle):
        assert side.first is None
        assert len(side.steps) > 40
        # int8 weights: zero error everywhere would mean the reference was compared with itself.
        assert 1e-4 < side.worst.error < side.bound


def test_the_damaged_weight_is_found(bundle: Path) -> None:
    damage(bundle, "item", BROKEN)
    user, item = bisect(bundle)
    assert user.first is None
    assert item.first is not None
    assert item.first.op == "MatMul"
    assert item.first.weights == (BROKEN,)
    # int8 values divided by two and rounded down: the product is off by about 50 %.
    assert 0.3 < item.first.error < 0.8
    assert item.before is not None
    assert item.before.error <= item.bound
    names = [s.tensor for s in item.steps]
    assert names.index(item.before.tensor) < names.index(item.first.tensor)


def test_the_bound_is_the_user_s(built_bundle: Path) -> None:
    user, _ = bisect(built_bundle, bound=1e-9)
    assert user.first is not None
    assert user.steps.index(user.first) == next(i for i, s in enumerate(user.steps) if s.error > 1e-9)
    with pytest.raises(UgsepError, match="the bound is 0"):
        bisect(built_bundle, bound=0.0)


def test_openvino_engines_are_read_too(bundle: Path) -> None:
    pytest.importorskip("openvino")
    manifest = read_manifest(bundle)
    engines = []
    for side in ("user", "item"):
        folder = bundle / "engines" / "openvino" / f"{side}.fp32"
        folder.mkdir(parents=True)
        built = build_engine(
            find_backend("openvino"),
            BuildSpec(side, bundle / "onnx" / f"{side}.onnx", "fp32"),  # type: ignore[arg-type]  # a literal
            folder,
            lambda _: None,
        )
        engines.append(Engine(folder.relative_to(bundle).as_posix(), built))
    write_manifest(bundle, dataclasses.replace(manifest, engines=(*manifest.engines, *engines)))
    for side in bisect(bundle, backend="openvino", precision="fp32"):
        assert side.engine == "openvino fp32"
        assert side.first is None
        assert len(side.steps) > 10
        assert 0 < side.worst.error < 1e-4  # reordered FP32 sums


def test_an_engine_that_does_not_run_is_one_line(bundle: Path) -> None:
    pytest.importorskip("openvino")
    manifest = read_manifest(bundle)
    renamed = [
        dataclasses.replace(e, built=dataclasses.replace(e.built, backend="openvino", inputs=()))
        for e in manifest.engines
    ]
    write_manifest(bundle, dataclasses.replace(manifest, engines=tuple(renamed)))
    with pytest.raises(UgsepError, match=r"user.xml: openvino cannot run it \(.*\); build") as caught:
        bisect(bundle)
    assert "\n" not in str(caught.value)


def test_an_engine_that_cannot_be_looked_into_is_refused(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    renamed = [
        dataclasses.replace(e, built=dataclasses.replace(e.built, backend="tensorrt-rtx")) for e in manifest.engines
    ]
    write_manifest(bundle, dataclasses.replace(manifest, engines=tuple(renamed)))
    with pytest.raises(UgsepError, match="inside a tensorrt-rtx engine cannot be read; pass --backend onnxruntime"):
        bisect(bundle)


def test_relative_error() -> None:
    reference = np.array([3.0, -4.0], np.float32)
    assert relative_error(reference, reference) == 0
    assert relative_error(reference, reference * np.float32(1.5)) == pytest.approx(0.5)
    assert relative_error(reference, np.array([3.0, np.nan], np.float32)) == float("inf")
    assert relative_error(np.zeros(2, np.float32), reference) == float("inf")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("expected", "actual"),
    [
        (np.array([np.inf, 1.0], np.float32), np.array([np.inf, 1.0], np.float32)),  # Inf - Inf
        (np.array([3.0, -4.0], np.float32), np.array([-np.inf, np.nan], np.float32)),
        (np.array([1e300, 2.0]), np.array([-1e300, 2.0])),  # the square overflows
    ],
)
def test_values_that_are_not_finite_are_infinitely_off_without_a_warning(expected: Array, actual: Array) -> None:
    assert relative_error(expected, actual) == float("inf")


def test_the_command_names_node_weight_and_error(bundle: Path) -> None:
    damage(bundle, "item", BROKEN)
    outcome = CliRunner().invoke(main, ["bisect", str(bundle)])
    assert outcome.exit_code == 1
    assert "first above the bound: matmul" in outcome.stdout
    assert BROKEN in outcome.stdout
    assert "relative error" in outcome.stderr.splitlines()[-1]
    sound = CliRunner().invoke(main, ["bisect", str(bundle), "--bound", "0.99", "--json"])
    assert sound.exit_code == 0, sound.stderr
    assert [side["first"] for side in json.loads(sound.stdout)] == [None, None]


def test_a_failed_validation_says_how_to_reproduce_and_keeps_the_worst_rows(
    bundle: Path, tiny_sources, tmp_path: Path
) -> None:
    recipe = yaml.safe_load((bundle / "recipe.yaml").read_text())
    recipe["gates"] |= {"max_probability": 1e-7, "fraction_of_limit": 0.0}
    (bundle / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    write_manifest(bundle, read_manifest(bundle))
    worst, junit = tmp_path / "worst.npz", tmp_path / "junit.xml"
    data = str(tiny_sources.requests[0])
    outcome = CliRunner().invoke(
        main, ["validate", str(bundle), "--requests", data, "--worst", str(worst), "--junit", str(junit)]
    )
    assert outcome.exit_code == 1
    assert f"reproduce: ugsep validate {bundle} --requests {data}" in outcome.stderr
    assert f"ugsep bisect {bundle} --requests {worst}" in outcome.stderr
    assert f"ugsep validate {bundle}" in junit.read_text()
    rows = np.load(worst)
    errors = np.abs(rows["quantized_error"]).max(axis=1)
    assert len(errors) == 64
    assert errors.max() > 0
    elsewhere = str(tmp_path / "none" / "worst.npz")
    hidden = CliRunner().invoke(main, ["validate", str(bundle), "--requests", data, "--worst", elsewhere])
    assert hidden.exit_code == 1
    assert "max |probability difference|" in hidden.stderr.splitlines()[-1]
    assert f"cannot be written to {elsewhere} (No such file or directory); pass --worst" in hidden.stderr
    # The saved rows are a request file: the same gate fails on it, and bisect reads it.
    again = CliRunner().invoke(
        main, ["validate", str(bundle), "--requests", str(worst), "--worst", str(tmp_path / "w")]
    )
    assert again.exit_code == 1, again.stderr
    assert "max |probability difference|" in again.stderr
    # On the worst rows, a logit near zero may exceed a relative bound: status 1 is a result, 2 would be an error.
    bisected = CliRunner().invoke(main, ["bisect", str(bundle), "--requests", str(worst)])
    assert bisected.exit_code in (0, 1), bisected.output
    assert "tensors compared" in bisected.output


def test_worst_rows_are_the_worst_ones(built_bundle: Path, tiny_sources, tmp_path: Path) -> None:
    spec = request_spec(built_bundle / "onnx" / "user.onnx", built_bundle / "onnx" / "item.onnx")
    requests = list(read_requests([str(p) for p in tiny_sources.requests], spec))
    rng = np.random.default_rng(0)
    per_request = [rng.standard_normal((2, r.candidates)) for r in requests]  # two tasks
    flat = np.concatenate([e.reshape(-1) for e in per_request])
    save_worst_rows(tmp_path / "w.npz", requests, {"quantized": flat}, rows=7)
    saved = np.load(tmp_path / "w.npz")
    worst = np.sort(np.concatenate([np.abs(e).max(axis=0) for e in per_request]))[-7:]
    np.testing.assert_allclose(np.sort(np.abs(saved["quantized_error"]).max(axis=1)), worst)
    for i, (request, candidate) in enumerate(zip(saved["request_id"], saved["candidate"], strict=True)):
        owner: Request = next(r for r in requests if r.request_id == request)
        np.testing.assert_array_equal(saved["affinity"][i], owner.items["affinity"][candidate])
        np.testing.assert_array_equal(saved["recent"][i], owner.user["recent"][0])
        index = requests.index(owner)
        np.testing.assert_allclose(saved["quantized_error"][i], per_request[index][:, candidate])
