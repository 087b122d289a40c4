"""Constants of a model on the meta device, read bounds by bounds from shards, against the same tensors in memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from export.weights import lazy_weights
from export.weights.direct_io import aligned_buffer
from export.weights.lazy_weights import Recorder, open_weights
from graphs.base.errors import UgsepError
from graphs.checkpoint.files import stored_weights


class _Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cube = nn.Parameter(torch.empty(3, 7, 5))
        self.flat = nn.Parameter(torch.empty(6, 9))


def _values(dtype: torch.dtype) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {n: torch.randn(p.shape, generator=generator).to(dtype) for n, p in _Model().state_dict().items()}


@pytest.fixture(scope="module", params=[torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    folder = tmp_path_factory.mktemp("weights")
    values = _values(request.param)
    safetensors.torch.save_file(values, folder / "model.safetensors")
    return folder, values


# What folding and splitting make of parameters: views, joined slices, results of arithmetic, views of those.
MADE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "whole": lambda cube, flat: cube,
    "slice of inputs": lambda cube, flat: cube.narrow(1, 2, 4),
    "slice of outputs": lambda cube, flat: cube[..., 1:4],
    "one token": lambda cube, flat: cube[2],
    "transposed": lambda cube, flat: flat.T,
    "transposed slice": lambda cube, flat: flat[:, 3:8].T,
    "joined slices": lambda cube, flat: torch.cat([cube[:, :2], cube[:, 5:], cube[:, 3:4]], 1),
    "joined columns": lambda cube, flat: torch.cat([flat[:, 7:], flat[:, :3]], -1),
    "view of joined": lambda cube, flat: torch.cat([flat[4:], flat[:1]])[1:, 2:].T,
    "arithmetic": lambda cube, flat: (flat.double() @ flat.double().T).softmax(-1).to(flat.dtype),
    "slice of arithmetic": lambda cube, flat: (flat * 2 + cube[0, 0, 0]).exp()[1:4, 2:],
}


@pytest.mark.parametrize("name", MADE)
def test_any_box_of_a_constant_is_what_it_is_in_memory(name: str, saved: tuple[Path, dict[str, Tensor]]) -> None:
    folder, values = saved
    want = MADE[name](values["cube"].float(), values["flat"].float())
    with torch.device("meta"):
        model = _Model()
    recorder = Recorder(model)
    with recorder, torch.no_grad():
        made = nn.Parameter(MADE[name](model.cube, model.flat), requires_grad=False)
    constant = recorder.constant(made, name)
    assert constant.shape == tuple(want.shape)
    slices = [
        tuple((0, n) for n in want.shape),
        tuple((n - 1, n) for n in want.shape),
        tuple((n // 3, max(n // 3 + 1, n - 1)) for n in want.shape),
    ]
    with open_weights(stored_weights(folder)) as weights:
        for bounds in slices:
            # arithmetic is the same operations on the same float32 values
            assert torch.equal(weights.read(constant, bounds).float(), want[tuple(slice(a, b) for a, b in bounds)])
        assert torch.equal(weights.read(constant.transposed()).float(), want.mT)
        buffer = aligned_buffer(1 << 16)
        whole = weights.read_unchecked(constant, slices[0], buffer=buffer)
        assert torch.equal(whole.float(), want)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_strided_reads_in_pieces_and_in_one_go_agree(data: st.DataObject) -> None:
    import tempfile

    value = torch.arange(4 * 6 * 5, dtype=torch.float32).reshape(4, 6, 5)
    order = data.draw(st.permutations((0, 1, 2)))
    view = value.permute(order)
    cuts = [sorted((data.draw(st.integers(0, n - 1)), data.draw(st.integers(1, n)))) for n in view.shape]
    bounds = tuple((a, max(b, a + 1)) for a, b in cuts)
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(lazy_weights, "_CHUNK_BYTES", data.draw(st.sampled_from((1, 40, 4096))))
        patch.setattr(lazy_weights, "_SPAN_TIMES", data.draw(st.sampled_from((1, 2, 4))))
        safetensors.torch.save_file({"w": value}, Path(folder) / "model.safetensors")
        constant = lazy_weights.Constant("w", torch.float32, tuple(view.shape), view.stride())
        with open_weights(stored_weights(Path(folder))) as weights:
            assert torch.equal(weights.read(constant, bounds), view[tuple(slice(a, b) for a, b in bounds)])


def test_a_constant_from_nowhere_is_refused() -> None:
    with torch.device("meta"):
        model, other = _Model(), torch.empty(4)
    with pytest.raises(UgsepError, match="constant 'table' is neither a weight of the checkpoint"):
        Recorder(model).constant(other, "table")


def test_a_computation_beyond_the_memory_it_may_take_is_refused(
    saved: tuple[Path, dict[str, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lazy_weights, "COMPUTED_BYTES", 100)
    with torch.device("meta"):
        model = _Model()
    recorder = Recorder(model)
    with recorder, torch.no_grad():
        made = model.flat.exp()
    with open_weights(stored_weights(saved[0])) as weights:
        with pytest.raises(UgsepError, match=r"constant 'x' needs .* MiB to compute \(aten.exp.default\)"):
            weights.read(recorder.constant(made, "x"), name="x")


def test_nan_is_refused_by_the_stored_weights_name(tmp_path: Path) -> None:
    values = _values(torch.float32)
    values["flat"][3, 4] = float("nan")
    safetensors.torch.save_file(values, tmp_path / "model.safetensors")
    with torch.device("meta"):
        model = _Model()
    recorder = Recorder(model)
    with recorder, torch.no_grad():
        view, made = model.flat[2:4, 3:], model.flat.exp()
    with open_weights(stored_weights(tmp_path)) as weights:
        for tensor in (view, made):
            with pytest.raises(UgsepError, match=r"model.safetensors: weight 'flat' has 1 NaN or infinite values"):
                weights.read(recorder.constant(tensor, "x"), name="x")
