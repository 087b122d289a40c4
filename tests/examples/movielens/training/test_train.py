import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from engines.bundle.fixture_file import Fixtures
from examples.movielens.__main__ import main
from examples.movielens.data.prepare import build, write
from examples.movielens.data.tables import Items, Ratings, Users
from examples.movielens.training.batches import read_features, read_rows
from examples.movielens.training.metrics import auc, log_loss
from examples.movielens.training.recipe import Recipe, Training, model_config
from examples.movielens.training.train import checkpoint, fixed_threads, forget_some, make_optimizer, schedule
from graphs.base.errors import UgsepError
from graphs.base.progress import Progress
from graphs.models.pretrained import load_checkpoint
from graphs.models.table import model_class

SMALL = Recipe(
    model={"width": 8, "layers": 1, "hidden": 8, "tower": 4},
    training=Training(threads=1, epochs=2, batch_rows=32),
)


@pytest.fixture
def data(tmp_path: Path, tables: tuple[Ratings, Users, Items]) -> Path:
    features, splits = build(*tables, test_days=5)
    write(tmp_path / "data", features, splits, "k", Fixtures(()))
    return tmp_path / "data"


def test_training_twice_gives_the_same_weights_and_another_seed_others(data: Path, tmp_path: Path) -> None:
    one = checkpoint("zenith", SMALL, data, tmp_path / "one")
    torch.rand(5)  # the global generator's state must not matter
    two = checkpoint("zenith", SMALL, data, tmp_path / "two")
    other = replace(SMALL, training=replace(SMALL.training, seed=1))
    three = checkpoint("zenith", other, data, tmp_path / "three")
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two", "three")]
    assert weights[0] == weights[1] != weights[2]
    assert one["parameters_sha256"] == two["parameters_sha256"] != three["parameters_sha256"]
    assert one["test"] == two["test"]


def test_the_checkpoint_reads_back_with_its_metrics(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "zenith"
    metrics = checkpoint("zenith", SMALL, data, out)
    assert {p.name for p in out.iterdir()} >= {"config.json", "model.safetensors", "metrics.json"}
    assert json.loads((out / "metrics.json").read_text()) == metrics
    assert {"test", "seconds", "data_sha256", "parameters_sha256", "training"} <= metrics.keys()
    model = load_checkpoint(out)
    features, tasks = read_features(data)
    held_out = read_rows(data / "test.parquet", features, tasks)
    with torch.inference_mode():
        logits = model(held_out.features)["like"].numpy()
    labels = held_out.labels["like"].numpy()
    # Batches of other sizes may sum in another order: float32 logits of order 1 agree to about 1e-6.
    assert log_loss(labels, logits) == pytest.approx(metrics["test"]["log_loss"]["like"], abs=1e-5)


def test_training_learns(data: Path, tmp_path: Path) -> None:
    longer = replace(SMALL, training=replace(SMALL.training, epochs=30, patience=30, lr=1e-2))
    rows = read_rows(data / "train.parquet", *read_features(data))
    checkpoint("zenith", longer, data, tmp_path / "a")
    model = load_checkpoint(tmp_path / "a")
    with torch.inference_mode():
        logits = model(rows.features)["like"].numpy()
    labels = rows.labels["like"].numpy()
    constant = log_loss(labels, np.full(len(labels), np.log(labels.mean() / (1 - labels.mean()))))
    assert log_loss(labels, logits) < constant


def test_content_decides_whether_to_train_again(data: Path, tmp_path: Path) -> None:
    out, events = tmp_path / "a", list[Progress]()

    def trained(recipe: Recipe = SMALL) -> bool:
        checkpoint("zenith", recipe, data, out, events.append)
        return events[-1].note != "unchanged"

    assert trained()
    assert not trained()
    assert trained(replace(SMALL, model={**SMALL.model, "tower": 5}))
    assert trained(replace(SMALL, training=replace(SMALL.training, epochs=1)))
    assert trained()
    blob = (out / "model.safetensors").read_bytes()
    (out / "model.safetensors").write_bytes(blob[:-1] + bytes([blob[-1] ^ 1]))
    assert trained()
    assert (out / "model.safetensors").read_bytes() == blob
    test = (data / "test.parquet").read_bytes()
    (data / "test.parquet").write_bytes((data / "calibration.parquet").read_bytes())
    assert trained()
    (data / "test.parquet").write_bytes(test)


def test_forgetting_hides_an_id_from_whole_requests(data: Path) -> None:
    rows = read_rows(data / "train.parquet", *read_features(data))
    hidden = forget_some(rows, {"user_id": 0.5}, np.random.default_rng(0))["user_id"]
    original = rows.features["user_id"]
    assert ((hidden == 0) & (original != 0)).any()
    assert ((hidden == original) & (original != 0)).any()
    for first, last in zip(rows.first, rows.first[1:], strict=False):
        assert len(set(hidden[first:last].tolist())) == 1


def test_each_parameter_is_optimized_once(data: Path) -> None:
    cls = model_class("zenith")
    model = cls(model_config(cls, SMALL, *read_features(data)))
    groups = make_optimizer(model, SMALL.training).param_groups
    in_groups = [id(p) for group in groups for p in group["params"]]
    assert sorted(in_groups) == sorted(id(p) for p in model.parameters())
    assert {p.ndim for p in groups[-1]["params"]} == {1}
    assert groups[-1]["weight_decay"] == 0


def test_the_schedule_rises_and_falls() -> None:
    factors = [schedule(step, 100, 0.1) for step in range(100)]
    assert max(factors) == factors[10] == 1.0
    assert factors[0] == pytest.approx(0.1)
    assert all(a > b for a, b in itertools.pairwise(factors[10:]))
    assert 0 < factors[-1] < 0.01


def test_threads_are_put_back() -> None:
    before = torch.get_num_threads()
    seen = []

    def fail() -> None:
        with fixed_threads(before + 1):
            seen.append(torch.get_num_threads())
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        fail()
    assert seen == [before + 1]
    assert torch.get_num_threads() == before


def test_metrics_against_their_definitions() -> None:
    draw = np.random.default_rng(5)
    labels, scores = draw.integers(0, 2, 60), np.round(draw.normal(size=60), 1)  # rounding makes ties
    gap = scores[labels == 1][:, None] - scores[labels == 0]  # every pair of a positive and a negative row
    pairs = (gap > 0) + 0.5 * (gap == 0)
    assert auc(labels, scores) == pytest.approx(np.mean(pairs), abs=1e-12)
    p = 1 / (1 + np.exp(-scores))
    assert log_loss(labels, scores) == pytest.approx(-np.mean(np.log(np.where(labels == 1, p, 1 - p))), abs=1e-12)
    assert log_loss(np.array([1.0]), np.array([-1e4])) == 1e4
    with pytest.raises(UgsepError, match="both labels"):
        auc(np.ones(3), scores[:3])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training: {epoch: 3}", "unknown setting 'epoch', did you mean 'epochs'"),
        ("training: {epochs: 0}", "training.epochs is 0"),
        ("training: {lr: 0}", "training.lr is 0"),
        ("training: {warmup: 1.5}", "training.warmup is 1.5"),
        ("training: {forget: {user_id: 1}}", "training.forget.user_id is 1"),
        ("training: {epochs: many}", "epochs"),
        ("modle: {}", "did you mean 'model'"),
        ("- 3", "mapping"),
        ("a: [", "is not YAML"),
    ],
)
def test_bad_recipes_are_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"model: zenith\n{text}" if text.startswith("training") else text)
    result = CliRunner().invoke(main, ["checkpoint", "--model", str(path), "--data", str(tmp_path / "data")])
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (Recipe(model={"features": []}), "model.features comes from the data"),
        (Recipe(model={"widht": 8}), "did you mean 'width'"),
        (Recipe(training=Training(forget={"taste": 0.1})), "forget names 'taste'"),
    ],
)
def test_bad_model_settings_are_refused(data: Path, recipe: Recipe, message: str) -> None:
    with pytest.raises(UgsepError, match=message):
        model_config(model_class("zenith"), recipe, *read_features(data))


def test_an_unknown_model_is_refused_before_anything_is_fetched(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["checkpoint", "--model", "zenit", "--data", str(tmp_path / "data")])
    assert result.exit_code == 2
    assert "error: unknown model 'zenit', did you mean 'zenith'?" in result.stderr
    assert not (tmp_path / "data").exists()
