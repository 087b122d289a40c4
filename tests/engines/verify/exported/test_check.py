"""An exported file that computes something else than PyTorch does not pass, wherever it differs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from engines.backends.contract import Array
from engines.verify.exported.check import Feeds, check_export
from engines.verify.exported.extreme_inputs import extreme_columns
from export.metadata import Stamp
from export.onnx_file import export_subgraph
from graphs.base.errors import GateFailed, UgsepError
from graphs.split.fresh_rows import fresh_rows
from graphs.split.split import Subgraph, split


class Scored(nn.Module):
    """A user layer times an embedding of what a function makes of the item's key."""

    def __init__(self, part: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.part, self.user, self.table = part, nn.Linear(3, 5), nn.Embedding(101, 5)

    def forward(self, user: Tensor, key: Tensor) -> Tensor:
        return (self.user(user) * self.table(self.part(key))).sum(1)


class Numeric(nn.Module):
    """A user layer times a layer on what a function makes of a number of the item."""

    def __init__(self, part: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.part, self.user, self.item = part, nn.Linear(3, 5), nn.Linear(1, 5)

    def forward(self, user: Tensor, key: Tensor) -> Tensor:
        return (self.user(user) * self.item(self.part(key)[:, None])).sum(1)


class Session:
    """The exported file in ONNX Runtime."""

    def __init__(self, path: Path) -> None:
        self.session = ort.InferenceSession(str(path))
        self.names = [o.name for o in self.session.get_outputs()]

    def infer(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        return dict(zip(self.names, self.session.run(None, dict(feeds)), strict=True))

    def close(self) -> None:
        del self.session


def whole(module: nn.Module, key: Tensor) -> Subgraph:
    return split(module.eval(), (torch.randn(len(key), 3), key), user=["user"], item=["key"]).full


def check(module: nn.Module, key: Tensor, folder: Path, file_of: nn.Module | None = None) -> None:
    """Check the file of ``file_of`` against ``module`` (by default its own) on rows like ``key``."""
    example = {"user": torch.randn(len(key), 3), "key": key}
    exported = whole(file_of or module, key)
    file = export_subgraph(
        exported, example, dict.fromkeys(example, "candidates"), folder / "full.onnx", Stamp("m", "full", "fp32", ())
    )
    generator = torch.Generator().manual_seed(3)

    def feeds(candidates: int, users: int) -> Feeds:
        return {"full": fresh_rows(example, candidates, generator)}

    check_export("full", whole(module, key), Session(file.path), feeds)


def through_floats(key: Tensor) -> Tensor:
    return torch.floor(key.float() / 7).long() % 101


def test_a_floor_division_through_floats_is_caught_although_all_example_ids_are_small(tmp_path: Path) -> None:
    with pytest.raises(GateFailed, match=r"full\.onnx 'output' with 'key' between -\d+ and \d+: \|difference\|"):
        check(Scored(lambda k: k // 7 % 101), torch.arange(99), tmp_path, Scored(through_floats))


def test_the_exporter_s_own_floor_division_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("export.program.decomposition", lambda node: None)
    module = Scored(lambda k: torch.div(k, 7, rounding_mode="floor") % 101)
    with pytest.raises(GateFailed, match="'key' between"):
        check(module, torch.arange(99), tmp_path)


@pytest.mark.parametrize(
    "part",
    [
        lambda k: k // 7 % 101,
        lambda k: (k * 2654435761 ^ (k >> 15)) & 63,
        lambda k: torch.div(k, 1000, rounding_mode="floor") % 101,  # an id of two parts
        lambda k: (k // 3600) % 24,  # the hour of a time stamp
    ],
    ids=["quotient", "mixed", "leading part", "hour"],
)
def test_hashed_ids_pass(part: Callable[[Tensor], Tensor], tmp_path: Path) -> None:
    check(Scored(part), torch.arange(99), tmp_path)


@pytest.mark.parametrize(
    "part",
    [
        lambda k: torch.log1p(k.float()),  # not finite below -1
        lambda k: torch.sin(k / 86400 * 6.28),  # of a large time stamp, FP32 keeps no digit of the phase
        lambda k: torch.exp(k.float() / 10),
        lambda k: torch.softmax(torch.stack([k, -k], 1).float(), 1)[:, 0],
    ],
    ids=["log", "phase", "exp", "softmax"],
)
def test_what_no_float32_can_compute_is_no_fault(part: Callable[[Tensor], Tensor], tmp_path: Path) -> None:
    check(Numeric(part), torch.arange(1, 99), tmp_path)


@pytest.mark.parametrize("mode", ["trunc", "floor"])
@pytest.mark.parametrize("divisor", [-1, torch.tensor(-1)], ids=["number", "tensor"])
def test_the_least_integer_is_divided_by_minus_one(mode: str, divisor: int | Tensor, tmp_path: Path) -> None:
    """PyTorch's own truncated division ends the process of the build there."""
    check(Scored(lambda k: torch.div(k, divisor, rounding_mode=mode) % 101), torch.arange(99), tmp_path)


def test_a_wrong_file_of_a_truncated_division_is_caught_at_any_id(tmp_path: Path) -> None:
    module = Scored(lambda k: torch.div(k, -1, rounding_mode="trunc") % 101)
    wrong = Scored(lambda k: torch.where(k == -(2**63), 1, -k) % 101)
    with pytest.raises(GateFailed, match=r"'key' between -\d+ and \d+"):
        check(module, torch.arange(99), tmp_path, wrong)


def test_divisors_are_checked_over_the_widest_range_without_0() -> None:
    graph = whole(Scored(lambda k: (2**60 + 1) // k % 101), torch.arange(1, 99))
    rows = {"user": torch.randn(64, 3), "key": torch.randint(1, 99, (64,))}
    (key,) = (column for name, column, _ in extreme_columns(graph, rows) if name == "key")
    assert (key.min(), key.max()) == (1, 2**63 - 1)


def test_ids_of_a_table_stay_in_it() -> None:
    graph = whole(Scored(lambda k: k), torch.arange(99))
    rows = {"user": torch.randn(64, 3), "key": torch.randint(0, 99, (64,))}
    assert [name for name, _, _ in extreme_columns(graph, rows)] == ["user"]


def test_ids_that_are_only_shifted_take_the_widest_range_that_works() -> None:
    graph = whole(Scored(lambda k: (k + 2**40).clamp(0) % 101), torch.arange(99))
    rows = {"user": torch.randn(64, 3), "key": torch.randint(0, 99, (64,))}
    (key,) = (column for name, column, _ in extreme_columns(graph, rows) if name == "key")
    assert key.min() == -(2**63)
    assert key.max() == 2**63 - 1
    assert {0, 1, -1, 2**24 + 1, 2**31, 2**53 + 1} <= set(key.tolist())


def masked(key: Tensor) -> Tensor:
    return torch.where(key > 50, key, 0).float() / torch.where(key > 50, 1, 0).float()


def test_a_nan_is_named_with_its_row(tmp_path: Path) -> None:
    with pytest.raises(GateFailed, match=r"'output' at \d+ rows: nan in row \d+, -?\d.* in PyTorch"):
        check(Numeric(lambda k: masked(k).nan_to_num(0.0)), torch.arange(99), tmp_path, Numeric(masked))


def test_rows_that_are_nan_in_pytorch_too_pass_beside_others(tmp_path: Path) -> None:
    check(Numeric(masked), torch.arange(99), tmp_path)


def test_a_model_without_any_finite_score_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UgsepError, match="gives no finite 'output' for any of 257 random rows"):
        check(Numeric(lambda k: k * math.nan), torch.arange(99), tmp_path)
