"""Saving and loading models: the round trip, and a one-line error for each kind of broken checkpoint."""

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
from graphs.models.pretrained import load_checkpoint, meta_model
from tests.graphs.model_laws import ALL, make_config, make_model, make_rows
from tests.mutations import mutated_bytes, mutated_json, refusal


@pytest.mark.parametrize("variant", ALL)
def test_a_saved_model_comes_back_bit_identical(tmp_path: Path, variant: str) -> None:
    model = make_model(make_config(variant, "2:1"))
    model.save_pretrained(tmp_path)
    loaded = load_checkpoint(tmp_path)
    assert loaded.config == model.config
    assert not loaded.training
    rows = make_rows(3, 1)
    with torch.no_grad():
        for task, logits in model(rows).items():
            assert torch.equal(loaded(rows)[task], logits)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("checkpoint")
    make_model(make_config("zenith", "1:1")).save_pretrained(directory)
    return directory


def test_both_files_have_the_mode_of_a_new_file(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "new").touch()
    assert {p.stat().st_mode for p in saved.iterdir()} == {(tmp_path / "new").stat().st_mode}


def _weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], object]:
    def apply(directory: Path) -> None:
        path = directory / "model.safetensors"
        tensors = {k: v.clone() for k, v in safetensors.torch.load_file(path).items()}
        change(tensors)
        safetensors.torch.save_file(tensors, path)

    return apply


def _config(**changes: object) -> Callable[[Path], object]:
    def apply(directory: Path) -> None:
        path = directory / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return apply


def _feature(number: int, **changes: object) -> Callable[[Path], object]:
    def apply(directory: Path) -> None:
        features = json.loads((directory / "config.json").read_text())["features"]
        features[number] |= changes
        _config(features=features)(directory)

    return apply


def _wide_tables(directory: Path) -> None:
    for number in (0, 3, 4):  # of three tables
        _feature(number, vocab=2**31 - 1)(directory)
    _config(width=96)(directory)


def _truncate(directory: Path) -> None:
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _pickle(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory / "model.pt")


def _replaced_by(make: Callable[[Path], object]) -> Callable[[Path], object]:
    def apply(directory: Path) -> None:
        (directory / "config.json").unlink()
        make(directory / "config.json")

    return apply


SPREAD = "layers.1.compensation.spread"
BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (shutil.rmtree, "no checkpoint at .*config.json is missing; train one"),
    "no config": (lambda d: (d / "config.json").unlink(), "config.json is missing"),
    "config is a pipe": (_replaced_by(os.mkfifo), "config.json' is a pipe, not a file; save the checkpoint again"),
    "config is a folder": (_replaced_by(Path.mkdir), "config.json' is a folder, not a file; save the checkpoint"),
    "config is no JSON": (lambda d: (d / "config.json").write_text("{"), "not valid JSON"),
    "config has a setting twice": (
        lambda d: (d / "config.json").write_text('{"width": 8, "width": 9}'),
        "config.json: not valid JSON .'width' is given twice",
    ),
    "config is a list": (lambda d: (d / "config.json").write_text("[]"), "contains a list, not a mapping"),
    "no architecture": (_config(architecture=None), "no 'architecture'"),
    "unknown architecture": (_config(architecture="zenit"), "unknown model 'zenit', did you mean 'zenith'"),
    "unknown setting": (_config(widht=8), "unknown setting 'widht', did you mean 'width'"),
    "no weights": (lambda d: (d / "model.safetensors").unlink(), "no weights at"),
    "truncated": (_truncate, "truncated or not safetensors"),
    "pickle": (_pickle, "found model.pt: pickles are not accepted"),
    "NaN": (_weights(lambda w: w[SPREAD].view(-1)[:2].fill_(torch.nan)), f"'{SPREAD}' has 2 NaN or infinite"),
    "missing weight": (_weights(lambda w: w.pop(SPREAD)), f"weight '{SPREAD}' is missing"),
    "surplus weight": (_weights(lambda w: w.update(odd=torch.zeros(1))), "unknown weight 'odd'"),
    "integers for floats": (
        _weights(lambda w: w.update({SPREAD: w[SPREAD].view(torch.int32)})),
        f"weight '{SPREAD}' is int32, the model requires float32; save the checkpoint in floating point",
    ),
    "beyond float32": (
        _weights(lambda w: w.update({SPREAD: torch.full(w[SPREAD].shape, 1e300, dtype=torch.float64)})),
        f"'{SPREAD}' has 16 NaN or infinite",
    ),
    "vocab of 2^31": (
        _feature(0, vocab=2**31),
        "config.json: feature 'uid': vocab is 2147483648; it must be at most",
    ),
    "vocab of 2^70": (
        _feature(0, vocab=2**70),
        r"config.json: features\[0\].vocab is 1180591620717411303424, which is out of range",
    ),
    "tokens of 2^31": (_config(user_tokens=2**31), "user_tokens is 2147483648; it must be at most 4096"),
    "name that leads out": (_feature(0, name="a/../../b"), "feature 'a/../../b' is not a valid name; use up to"),
    "name with dots": (_feature(0, name="a.b"), "feature 'a.b' is not a valid name"),
    "name of PyTorch": (_feature(0, table="keys"), "table 'keys' is a name that PyTorch uses.*give 'table' another"),
    "task of PyTorch": (_config(tasks=["items"]), "task 'items' is a name that PyTorch uses itself; rename it"),
    "task without a name": (_config(tasks=[""]), "task '' is not a valid name"),
    "nested lists": (
        lambda d: (d / "config.json").write_text('{"tasks": ' + "[" * 9_000 + "]" * 9_000 + "}"),
        "nested more than 64 levels deep",
    ),
    "more than this machine has": (
        _wide_tables,
        "the config describes 6.18e.11 parameters, 2473.9 GB in FP32 .*, but this machine has .* 'ugsep stream'",
    ),
    "more than any machine has": (_config(width=2**20, hidden=2**20), "GB in FP32.* out of range .*correct"),
    "wrong shape": (_config(hidden=11), r"has shape \(4, 10, 24\), config.json requires \(4, 11, 24\)"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_checkpoint_is_refused_in_one_line(saved: Path, tmp_path: Path, case: str) -> None:
    directory = tmp_path / "checkpoint"
    shutil.copytree(saved, directory)
    load_checkpoint(directory)
    damage, message = BROKEN[case]
    damage(directory)
    with pytest.raises(UgsepError, match=message) as caught:
        load_checkpoint(directory)
    assert "\n" not in str(caught.value)


def test_a_pickle_named_as_the_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    path.write_bytes(b"x")
    with pytest.raises(UgsepError, match="is a pickle, which can run code"):
        load_checkpoint(path)


def test_a_failed_save_leaves_the_old_weights(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "checkpoint"
    shutil.copytree(saved, directory)

    def contents(folder: Path) -> dict[str, bytes]:
        return {p.name: p.read_bytes() for p in folder.iterdir()}

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", fail)
    with pytest.raises(OSError, match="No space left"):
        make_model(make_config("zenith", "1:1"), seed=5).save_pretrained(directory)
    assert contents(directory) == contents(saved)


def test_the_next_save_removes_what_a_killed_one_left(saved: Path, tmp_path: Path) -> None:
    left = tmp_path / ".saving-abcd1234"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    make_model(make_config("zenith", "1:1")).save_pretrained(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {p.name for p in saved.iterdir()}


@pytest.mark.parametrize("number", range(2))
def test_mutated_checkpoints_load_or_are_refused_in_one_line(number: int, saved: Path, tmp_path: Path) -> None:
    rng = random.Random(number)
    directory = tmp_path / "checkpoint"
    shutil.copytree(saved, directory)
    config, weights = directory / "config.json", directory / "model.safetensors"
    settings, whole = config.read_text(), weights.read_bytes()
    header = whole[8 : 8 + int.from_bytes(whole[:8], "little")]
    refused = 0
    for _ in range(150):
        config.write_text(settings)
        weights.write_bytes(whole)
        sort = rng.randrange(3)
        if sort == 0:
            config.write_text(mutated_json(json.loads(settings), rng), errors="surrogatepass")
        elif sort == 1:
            text = mutated_json(json.loads(header), rng).encode(errors="surrogatepass")
            if rng.random() < 0.5:  # of the old length, so that the tensors stay where they were
                text = text[: len(header)].ljust(len(header))
            weights.write_bytes(len(text).to_bytes(8, "little") + text + whole[8 + len(header) :])
        else:
            weights.write_bytes(mutated_bytes(whole, rng, rng.choice([8, len(header), None])))
        message = refusal(load_checkpoint, directory)
        if refusal(meta_model, directory) != message:  # made without memory, and without a look at values
            assert "this machine has" in message or "NaN or infinite" in message
        refused += bool(message)
    assert refused > 100
