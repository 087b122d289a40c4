"""An open bundle: its documents, its graphs, and requests that fit it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from engines import Ranker
from engines.build.sources import Sources
from engines.bundle.bundle import Bundle
from engines.bundle.manifest import read_manifest, write_manifest
from engines.bundle.report_file import REPORT
from engines.cli.main import main
from graphs.base.errors import UgsepError
from tests import tiny


def test_a_bundle_has_its_recipe_report_and_graphs(built_bundle: Path) -> None:
    bundle = Bundle.open(built_bundle)
    assert bundle.recipe == tiny.RECIPE
    assert bundle.changed_recipe(["serving.threads=3"]).serving.threads == 3
    assert bundle.report["passed"] == bundle.manifest.passed
    assert len(bundle.manifest.content_key) == 64
    assert all(bundle.onnx(side).is_file() for side in ("full", "user", "item"))


def test_requests_of_a_bundle_fit_it(built_bundle: Path, tiny_sources: Sources) -> None:
    bundle = Bundle.open(built_bundle)
    spec = bundle.request_spec()
    first, again = (list(bundle.synthetic_requests(2, 5, seed=3)) for _ in range(2))
    assert [r.candidates for r in first] == [5, 5]
    assert all(
        (a.items[s.name] == b.items[s.name]).all() for a, b in zip(first, again, strict=True) for s in spec.item
    )
    read = next(bundle.read_requests(tiny_sources.requests))
    assert {name: value.dtype for name, value in read.items.items()} == {s.name: np.dtype(s.dtype) for s in spec.item}
    for request in (read, *first):
        for name, rows in bundle.manifest.vocabularies.items():
            assert {**request.user, **request.items}[name].max() < rows


def test_a_bundle_without_a_report_is_refused_in_one_line(bundle: Path) -> None:
    (bundle / REPORT).unlink()
    with pytest.raises(UgsepError, match=r"report.json: missing from the bundle; rebuild: make engines"):
        Bundle.open(bundle)
    opened = Bundle(bundle, read_manifest(bundle))
    with pytest.raises(UgsepError, match=r"no report.json; build the bundle again") as caught:
        _ = opened.report
    assert "\n" not in str(caught.value)


def test_opening_a_bundle_imports_nothing_heavy(built_bundle: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from engines.bundle.bundle import Bundle; "
        "bundle = Bundle.open(Path(sys.argv[1])); bundle.report; bundle.onnx('user'); "
        "print({'torch', 'onnx', 'onnx_ir', 'onnxruntime', 'yaml', 'quant', 'click'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(built_bundle)], cwd=Path(__file__).parents[3], capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("set()\n", "")


def test_a_graph_that_does_not_fit_its_data_is_refused_though_its_hash_fits(bundle: Path) -> None:
    path = bundle / "onnx" / "item.w8a16.onnx"  # no engine of this bundle is made from it
    model = onnx.load(path, load_external_data=False)
    (weight,) = [t for t in model.graph.initializer if t.name == "heads.like.hidden.weight"]
    weight.dims[0] += 1
    path.write_bytes(model.SerializeToString())
    write_manifest(bundle, read_manifest(bundle))
    for command in (["verify"], ["validate", "--synthetic"]):
        result = CliRunner().invoke(main, [*command, str(bundle)])
        assert (result.exit_code, result.stderr.count("\n")) == (2, 1), result.output
        assert "item.w8a16.onnx': the tensor 'heads.like.hidden.weight' of shape" in result.stderr
    Ranker.from_bundle(bundle).close()  # a server needs no ONNX tooling, and this file is not its
