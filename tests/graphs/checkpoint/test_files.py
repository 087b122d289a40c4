"""Sharded checkpoints: the round trip, and a one-line error for each mismatch of index and shards."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from graphs.base.errors import UgsepError
from graphs.checkpoint.files import INDEX, SINGLE, stored_weights, weight_files
from graphs.models.pretrained import load_checkpoint, meta_model
from tests.graphs.model_laws import make_config, make_model, make_rows
from tests.mutations import mutated_json, refusal

SPREAD = "layers.1.compensation.spread"


def shard(folder: Path, count: int) -> None:
    """Cut a checkpoint's file into shards, as Hugging Face writes them."""
    weights = safetensors.torch.load_file(folder / SINGLE)
    names = sorted(weights)
    placed: dict[str, str] = {}
    for number in range(count):
        file = f"model-{number + 1:05d}-of-{count:05d}.safetensors"
        mine = names[number::count]
        safetensors.torch.save_file({n: weights[n] for n in mine}, folder / file)
        placed |= dict.fromkeys(mine, file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    (folder / SINGLE).unlink()


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    make_model(make_config("zenith", "2:1")).save_pretrained(folder)
    shard(folder, 3)
    return folder


def test_a_sharded_model_scores_as_the_one_in_one_file(sharded: Path) -> None:
    model, loaded = make_model(make_config("zenith", "2:1")), load_checkpoint(sharded)
    index, *shards = weight_files(sharded)
    assert (index.name, len(shards)) == (INDEX, 3)
    rows = make_rows(4, 2)
    with torch.no_grad():
        for task, logits in model(rows).items():
            assert torch.equal(loaded(rows)[task], logits)


def test_bf16_weights_become_the_models_float32(sharded: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bf16"
    shutil.copytree(sharded, folder)
    for file in folder.glob("*.safetensors"):
        weights = safetensors.torch.load_file(file)
        safetensors.torch.save_file({k: v.bfloat16() for k, v in weights.items()}, file)
    exact = load_checkpoint(sharded).state_dict()
    for name, value in load_checkpoint(folder).state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, exact[name].bfloat16().float())


def test_a_meta_model_has_names_and_shapes_only(sharded: Path) -> None:
    model = meta_model(sharded)
    exact = load_checkpoint(sharded).state_dict()
    assert {n: v.shape for n, v in model.state_dict().items()} == {n: v.shape for n, v in exact.items()}
    assert all(v.device.type == "meta" for v in model.state_dict().values())
    assert not model.training


def _index(change: Callable[[dict[str, str]], object]) -> Callable[[Path], object]:
    def apply(folder: Path) -> None:
        document = json.loads((folder / INDEX).read_text())
        change(document["weight_map"])
        (folder / INDEX).write_text(json.dumps(document))

    return apply


def _in_shard(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], object]:
    def apply(folder: Path) -> None:
        file = folder / json.loads((folder / INDEX).read_text())["weight_map"][SPREAD]
        weights = {k: v.clone() for k, v in safetensors.torch.load_file(file).items()}
        change(weights)
        safetensors.torch.save_file(weights, file)

    return apply


def _truncate(folder: Path) -> None:
    file = folder / "model-00002-of-00003.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def _both(
    in_index: Callable[[dict[str, str]], object], in_shard: Callable[[dict[str, torch.Tensor]], object]
) -> Callable[[Path], object]:
    def apply(folder: Path) -> None:
        _in_shard(in_shard)(folder)
        _index(in_index)(folder)

    return apply


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing shard": (
        lambda d: (d / "model-00002-of-00003.safetensors").unlink(),
        r"index.json: shard 'model-00002-of-00003.safetensors' is missing; copy it",
    ),
    "truncated shard": (_truncate, r"model-00002-of-00003.safetensors is truncated or not safetensors"),
    "index is not JSON": (lambda d: (d / INDEX).write_text("{"), "index.json: not valid JSON"),
    "index without map": (lambda d: (d / INDEX).write_text("{}"), "has no 'weight_map'"),
    "shard elsewhere": (_index(lambda m: m.update({SPREAD: "../x.safetensors"})), "'../x.safetensors' is outside"),
    "weight not in its shard": (_in_shard(lambda w: w.pop(SPREAD)), rf"weight '{SPREAD}' is missing, although"),
    "weight not in the index": (
        _in_shard(lambda w: w.update({"extra": torch.zeros(2)})),
        "unknown weight 'extra', not listed for this shard in the index",
    ),
    "weight that the model lacks": (
        _both(lambda m: m.update({"extra": m[SPREAD]}), lambda w: w.update({"extra": torch.zeros(2)})),
        "unknown weight 'extra'.*is config.json from this model",
    ),
    "weight that the checkpoint lacks": (
        _both(lambda m: m.pop(SPREAD), lambda w: w.pop(SPREAD)),
        rf"weight '{SPREAD}' is missing, did you",
    ),
    "wrong shape": (_in_shard(lambda w: w.update({SPREAD: torch.zeros(2, 5)})), r"shape \(2, 5\), config.json"),
    "NaN": (_in_shard(lambda w: w[SPREAD].fill_(float("nan"))), rf"{SPREAD}' has 8 NaN or infinite values"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_sharded_checkpoint_is_refused_in_one_line(what: str, sharded: Path, tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(sharded, folder)
    breakage, message = BROKEN[what]
    breakage(folder)
    with pytest.raises(UgsepError, match=message) as caught:
        load_checkpoint(folder)
    assert "\n" not in str(caught.value)
    if what != "NaN":  # meta_model does not read values
        with pytest.raises(UgsepError, match=message):
            meta_model(folder)


def test_offsets_point_at_the_weights_bytes(sharded: Path) -> None:
    exact = load_checkpoint(sharded).state_dict()
    for name, stored in stored_weights(sharded).items():
        raw = stored.file.read_bytes()[stored.offset : stored.offset + exact[name].nbytes]
        assert raw == exact[name].contiguous().numpy().tobytes()


def test_a_mutated_index_is_read_or_refused_in_one_line(sharded: Path, tmp_path: Path) -> None:
    rng = random.Random(7)
    folder = tmp_path / "mutated"
    shutil.copytree(sharded, folder)
    whole = json.loads((folder / INDEX).read_text())
    refused = 0
    for _ in range(300):
        (folder / INDEX).write_text(mutated_json(whole, rng), errors="surrogatepass")
        refused += bool(refusal(stored_weights, folder))
    assert refused > 200


def _replaced(name: str, make: Callable[[Path], object]) -> Callable[[Path], object]:
    """Return a change that puts something else in the place of a file of a checkpoint."""

    def apply(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        make(folder / name)

    return apply


SHARD = "model-00002-of-00003.safetensors"
ODD: dict[str, tuple[Callable[[Path], object], str]] = {
    "pipe": (os.mkfifo, "a pipe"),
    "folder": (Path.mkdir, "a folder"),
    "link to itself": (lambda p: p.symlink_to(p.name), "a link that leads to itself"),
    "link to nothing": (lambda p: p.symlink_to("gone"), "a link that leads to no file"),
    "device": (lambda p: p.symlink_to("/dev/zero"), "a device"),
}


@pytest.mark.parametrize("what", ODD)
@pytest.mark.parametrize("name", [SINGLE, INDEX, SHARD])
def test_what_is_no_file_is_refused_by_what_it_is(sharded: Path, tmp_path: Path, name: str, what: str) -> None:
    folder = tmp_path / "odd"
    shutil.copytree(sharded, folder)
    make, kind = ODD[what]
    _replaced(name, make)(folder)
    for read in (load_checkpoint, meta_model):
        assert refusal(read, folder) == f"'{folder / name}' is {kind}, not a file; copy the checkpoint again"


def test_links_to_files_elsewhere_are_followed(sharded: Path, tmp_path: Path) -> None:
    """The cache of Hugging Face keeps every file of a checkpoint as a link to a folder of blobs."""
    (tmp_path / "snapshot").mkdir()
    for file in sharded.iterdir():
        (tmp_path / "snapshot" / file.name).symlink_to(file)
    exact = load_checkpoint(sharded).state_dict()
    for name, value in load_checkpoint(tmp_path / "snapshot").state_dict().items():
        assert torch.equal(value, exact[name])
