"""``ugsep split`` and ``ugsep build`` of TorchRec's models, with their tables and without."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from engines import Ranker
from engines.cli.main import main
from graphs.trace.jagged.padding import pad
from tests.graphs.torchrec_models import MODELS, jagged, needs_torchrec

FILE = "from tests.graphs.torchrec_models import deepfm, dlrm, dlrm_dcn\n"
# Random weights: the scores are compared with PyTorch in float32, and what int8 does to them says nothing.
RECIPE = """
model: torchrec
serving: {precision: {user: fp32, item: fp32}, candidates: [4], backend: onnxruntime}
"""
DECLARED = ("--user", "history,country,dense_features", "--item", "item,tags", "--single", "item,country")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models")
    (path / "model.py").write_text(FILE)
    (path / "recipe.yaml").write_text(RECIPE)
    return path


def run(command: str, folder: Path, factory: str, *options: str) -> Result:
    return CliRunner().invoke(main, [command, f"{folder / 'model.py'}:{factory}", *DECLARED, *options])


def build(folder: Path, factory: str, out: Path, *options: str) -> Result:
    files = ["--recipe", str(folder / "recipe.yaml"), "--out", str(out)]
    return run("build", folder, factory, *files, "--no-cache", "--json", *options)


@needs_torchrec
def test_split_names_features_by_side(folder: Path) -> None:
    result = run("split", folder, "deepfm", "--json", "--max-lengths", "history=9")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["proof"]["max_rel"] < 1e-5
    assert found["split"]["reusable_share"] > 0.1


@needs_torchrec
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--max-lengths", "histroy=9"), "no jagged feature 'histroy', did you mean 'history'?"),
        (("--max-lengths", "history"), "'history' has no length; write --max-lengths history=50,tags=8"),
        (
            ("--max-lengths", "history=2"),
            "a row of feature 'history' has 5 ids, but 2 at most are declared; write --max-lengths history=5, or "
            "give the model its first 2",
        ),
    ],
)
@pytest.mark.parametrize("command", ["split", "build"])
def test_declarations_that_do_not_fit_are_one_line(
    folder: Path, command: str, options: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    result = (
        build(folder, "dlrm", tmp_path / "b", *options)
        if command == "build"
        else run("split", folder, "dlrm", *options)
    )
    assert result.exit_code == 2, result.output
    assert result.stderr.splitlines()[-1] == f"error: {message}"


def test_declarations_without_torchrec_are_refused(tmp_path: Path) -> None:
    (tmp_path / "plain.py").write_text("import torch\ndef f():\n    return torch.nn.Bilinear(2, 2, 1), {}\n")
    result = CliRunner().invoke(
        main, ["split", f"{tmp_path / 'plain.py'}:f", "--user", "a", "--item", "b", "--embeddings", "outside"]
    )
    assert result.exit_code == 2
    assert "no example input is a TorchRec KeyedJaggedTensor" in result.stderr


@needs_torchrec
@pytest.mark.slow
@pytest.mark.parametrize("embeddings", ["inside", "outside"])
@pytest.mark.parametrize("factory", ["dlrm", "dlrm_dcn", "deepfm"])
def test_a_bundle_scores_as_the_model_does_on_jagged_features(
    folder: Path, factory: str, embeddings: str, tmp_path: Path
) -> None:
    out = tmp_path / "bundle"
    result = build(folder, factory, out, "--max-lengths", "history=9", "--embeddings", embeddings)
    assert result.exit_code == 0, result.stderr
    module, _ = MODELS[factory]()
    n = 6
    user = {"history": [4] * n, "country": [1] * n}
    features = jagged({**user, "item": [1] * n, "tags": [0, 1, 2, 3, 1, 2]})
    # One user: every row has the first row's ids.
    tensors = pad(features, {"history": 9, "tags": 3})
    for name in ("history.values", "history.lengths", "country"):
        tensors[name] = tensors[name][:1].expand_as(tensors[name])
    dense = torch.randn(1, 5, generator=torch.Generator().manual_seed(2)).expand(n, 5)
    with torch.no_grad():
        wanted = module(dense, same_user(features, n))  # [n, 1]
        if embeddings == "outside":
            pooled = module.sparse_arch.embedding_bag_collection(same_user(features, n))  # type: ignore[union-attr, operator]
            tensors = pooled.to_dict()
    inputs = {
        name: np.ascontiguousarray(value.numpy()) for name, value in {**tensors, "dense_features": dense}.items()
    }
    users = {name: value[:1] for name, value in inputs.items() if name.split(".")[0] in (*user, "dense_features")}
    items = {name: value for name, value in inputs.items() if name not in users}
    with Ranker.from_bundle(out) as ranker:
        (scores,) = ranker.score(users, items).values()
    assert float(wanted.std()) > 1e-3
    # Float32 sums of at most 40 products per layer, in another order.
    np.testing.assert_allclose(scores, wanted.numpy(), rtol=1e-5, atol=1e-5)


def same_user(features: object, rows: int) -> object:
    """Return the features with the first row's history and country in every row."""
    from torchrec import KeyedJaggedTensor

    found = features.to_dict()  # type: ignore[attr-defined]
    values = [
        part.values()[: int(part.lengths()[0])].repeat(rows) if name in ("history", "country") else part.values()
        for name, part in found.items()
    ]
    lengths = torch.cat([part.lengths() for part in found.values()])
    return KeyedJaggedTensor(keys=list(found), values=torch.cat(values), lengths=lengths)
