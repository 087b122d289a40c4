"""Ops whose exported form must give PyTorch's values: integers of 64 bits, lookups, attention without keys."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.metadata import Stamp
from export.onnx_file import export_subgraph
from graphs.base.errors import UgsepError
from graphs.split.proof import prove_split
from graphs.split.split import split
from tests.suites import slow_but

EDGES = torch.tensor(
    [
        0,
        1,
        -1,
        6,
        -6,
        7,
        -7,
        *(s * n for n in (2**24 + 1, 2**31 - 1, 2**31, 2**32 - 9, 2**32 + 5, 2**53 + 1, 2**63 - 1) for s in (1, -1)),
        2**53,
        2**62 + 1,
        -(2**63),
    ]
)


class Hashed(nn.Module):
    """A quotient-remainder embedding of an item's id, beside a user feature."""

    def __init__(self, part: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.part = part
        self.user = nn.Linear(3, 5)
        self.table = nn.Embedding(101, 5)

    def forward(self, user: Tensor, key: Tensor) -> Tensor:
        return (self.user(user) * self.table(self.part(key) % 101)).sum(1)


PARTS: dict[str, Callable[[Tensor], Tensor]] = {
    "div floor": lambda k: torch.div(k, 7, rounding_mode="floor"),
    "div trunc": lambda k: torch.div(k, 7, rounding_mode="trunc"),
    "div floor by a tensor": lambda k: torch.div(k, torch.tensor(-7), rounding_mode="floor"),
    "div trunc by a tensor": lambda k: torch.div(k, torch.tensor(-7), rounding_mode="trunc"),
    "floor_divide": lambda k: k // 7,
    "fmod": lambda k: torch.fmod(k, 7),
    "fmod by a tensor": lambda k: torch.fmod(k, torch.tensor(-7)),
    "remainder": lambda k: torch.remainder(k, -7),
    "sum": lambda k: torch.stack([k // 3, k // 5], 1).sum(1),
    "sum of all axes but the rows": lambda k: torch.stack([k // 3, k // 5], 1)[:, None].sum((1, -1), keepdim=True)[
        :, 0, 0
    ],
    "sum in 32 bits": lambda k: torch.stack([k, k], 1).sum(1, dtype=torch.int32).long(),
    "floor by -1": lambda k: k // -1,
    "floor by a tensor with -1": lambda k: k // (k % 2 * 4 - 1),
    "floor of a number": lambda k: (2**60 + 1) // (k % 1000 + 1),
    "remainder by -1": lambda k: k % -1,
    "remainder by a tensor with -1": lambda k: k % (k % 2 * 4 - 1),
    "power": lambda k: k**7,
    "power by a tensor": lambda k: torch.pow(k, k % 9 - 4),
    "power of 1 and -1 by a tensor": lambda k: torch.pow(k % 3 - 1, k % 9 - 4),
    "power of a number": lambda k: torch.pow(-3, k % 80 - 5),
    "power of 32 bits": lambda k: torch.pow(k.int(), k % 9).long() + k.int().long() ** 2,
    "remainder by a tensor": lambda k: k % (k.abs() % 5 + 1),
    "remainder of a number": lambda k: 1000003 % (k.abs() % 97 + 1),
    "sum of products": lambda k: torch.stack([k, k + 9], 1) @ torch.tensor([3, 5]),
    "sum of nothing": lambda k: k + k[:, None][:, :0].sum(1),
    "sum of nothing, axis kept": lambda k: k + k[:, None][:, :0].sum(1, keepdim=True)[:, 0],
    "product of nothing": lambda k: k + k[:, None][:, :0].prod(1),
    "cumulative product of nothing": lambda k: k + k[:, None][:, :0].cumprod(1).sum(1),
    "product": lambda k: torch.stack([k, k + 1], 1).prod(1),
    "product, axis kept": lambda k: torch.stack([k, k + 1], 1).prod(1, keepdim=True)[:, 0],
    "cumulative product": lambda k: torch.stack([k, k + 1, k], 1).cumprod(1)[:, 2],
    "cumulative sum": lambda k: torch.stack([k, k // 3], 1).cumsum(1)[:, 1],
    "sign": torch.sign,
    "absolute value": torch.abs,
    "minimum": lambda k: torch.minimum(k, k * 3),
    "maximum": lambda k: torch.maximum(k, torch.tensor(2**53 + 1)),
    "clamp": lambda k: k.clamp(-(2**60), 2**53 + 1),
    "clamp to a table": lambda k: k.clamp(0, 99),
    "clamp from below": lambda k: k.clamp(min=1),
    "clamp from above": lambda k: k.clamp(max=-5),
    "clamp of 32 bits": lambda k: k.int().clamp(0, 99).long(),
    "relu": lambda k: torch.relu(k),
    "clamp by tensors": lambda k: torch.clamp(k, torch.tensor(0), torch.tensor(2**53 + 1)),
    "largest of an axis": lambda k: torch.stack([k, k - 1], 1).amax(1),
    "largest of two": lambda k: torch.stack([k, k * 0 + 7], 1).amax(1),
    "largest of some axes, kept": lambda k: torch.stack([k, k * 0 + 7], 1)[:, None].amax((1, -1), True)[:, 0, 0],
    "least of some axes": lambda k: torch.stack([k, k * 0 + 7], 1)[:, None].amin((1, 2)),
    "largest and its position": lambda k: (
        torch.stack([k * 0 + 7, k], 1).max(1).values + torch.stack([k, k * 0 + 7], 1).max(1).indices
    ),
    "least and its position": lambda k: torch.stack([k * 0 + 7, k], 1).min(1, keepdim=True).values[:, 0],
    "position of the largest": lambda k: torch.stack([k, k + 1, k - 1], 1).argmax(1),
    "sorted": lambda k: torch.stack([k, k - 1, k + 1], 1).sort(1).values[:, 1],
    "gathered": lambda k: torch.stack([k, k + 1, k + 2], 1).gather(1, (k % 3)[:, None])[:, 0],
    "where": lambda k: torch.where(k > 2**53, k, -k),
    "compared": lambda k: (k == 2**53 + 1).long() + 2 * (k > 2**53).long() + 4 * (k <= -(2**53) - 1).long(),
    "one of a list": lambda k: torch.isin(k, torch.tensor([2**53, 2**53 + 1])).long(),
    "none of a list": lambda k: torch.isin(k, torch.tensor([0, 2**53 + 1]), invert=True).long(),
    "bits": lambda k: ((k[:, None] >> torch.arange(-1, 66)) & 1).cumsum(1)[:, 40],
    "shifted left by a tensor": lambda k: k << (k % 70 - 2),
    "shifted right by a tensor": lambda k: k >> (k % 70 - 2),
    "to 32 bits": lambda k: k.to(torch.int32).long(),
    "to 8 bits": lambda k: k.to(torch.uint8).long() + k.to(torch.int8).long(),
    "or and not": lambda k: ~(k | 5),
    **{f"shifted left by {n}": (lambda k, n=n: k << n) for n in (0, 7, 31, 32, 62, 63)},
    **{f"shifted right by {n}": (lambda k, n=n: k >> n) for n in (0, 7, 31, 32, 62, 63)},
    "multiply, shift and remainder": lambda k: (k * 2654435761 >> 7) % 64,
    "shifted as int32": lambda k: ((k.to(torch.int32) >> 7) + (k.to(torch.int32) << 9)).long(),
    "multiply, xor and shift": lambda k: ((k * 2654435761) ^ (k >> 15)) & 0xFFFFFFFF,
}


@pytest.mark.parametrize("name", slow_but(list(PARTS)[::3], PARTS))
def test_an_integer_op_is_exact_over_the_whole_range(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Hashed(PARTS[name]).eval()
    made = split(module, (torch.randn(7, 3), torch.arange(7)), user=("user",), item=("key",))
    wide = torch.randint(-(2**63), 2**63 - 1, (64,))
    feeds = {"user": torch.randn(len(EDGES) + 64, 3), "key": torch.cat([EDGES, wide])}
    stamp = Stamp("hashed", "full", "fp32", ())
    rows = {n: "candidates" for n in feeds}
    file = export_subgraph(made.full, feeds, rows, tmp_path / "full.onnx", stamp)
    got = ort.InferenceSession(str(file.path)).run(None, {n: v.numpy() for n, v in feeds.items()})[0]
    (wanted,) = made.full(feeds).values()
    # A wrong row of the table changes a score by tenths; FP32 sums of 5 terms differ by 1e-6.
    np.testing.assert_allclose(got, wanted.numpy(), atol=1e-5)


BY_ZERO: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "floor_divide": (lambda k, d: k // d, lambda k: k),
    "div floor": (lambda k, d: torch.div(k, d, rounding_mode="floor"), lambda k: k),
    "div trunc": (lambda k, d: torch.div(k, d, rounding_mode="trunc"), lambda k: k),
    "remainder": (lambda k, d: k % d, torch.zeros_like),
    "fmod": (torch.fmod, torch.zeros_like),
    "floor of a number": (lambda k, d: -17 // d, lambda k: torch.full_like(k, -17)),
    "remainder of a number": (lambda k, d: 17 % d, torch.zeros_like),
    "32 bits": (lambda k, d: (k.int() // d.int()).long(), lambda k: k.int().long()),
    "bytes": (lambda k, d: (k.to(torch.uint8) // d.to(torch.uint8)).long(), lambda k: k.to(torch.uint8).long()),
}


class Divided(nn.Module):
    """A table row of what two integers of an item give, beside a user feature."""

    def __init__(self, part: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.part = part
        self.user = nn.Linear(3, 5)
        self.table = nn.Embedding(101, 5)

    def forward(self, user: Tensor, key: Tensor, by: Tensor) -> Tensor:
        return (self.user(user) * self.table(self.part(key, by) % 101)).sum(1)


@pytest.mark.parametrize("name", BY_ZERO)
def test_a_division_by_0_is_one_by_1(name: str, tmp_path: Path) -> None:
    """PyTorch refuses it, and so did ONNX Runtime, for all rows of a call; other runtimes end the process."""
    torch.manual_seed(0)
    part, at_zero = BY_ZERO[name]
    module = Divided(part).eval()
    made = split(module, (torch.randn(7, 3), torch.arange(7), torch.arange(1, 8)), user=("user",), item=("key", "by"))
    by = torch.tensor([0, 5, 0, -1, -3] * len(EDGES))
    key = EDGES.repeat_interleave(5)
    feeds = {"user": torch.randn(len(key), 3), "key": key, "by": by}
    stamp = Stamp("divided", "full", "fp32", ())
    read = {name: feeds[name] for name in made.full.inputs}  # of numbers, not the key
    file = export_subgraph(made.full, read, dict.fromkeys(read, "candidates"), tmp_path / "full.onnx", stamp)
    got = ort.InferenceSession(str(file.path)).run(None, {n: v.numpy() for n, v in read.items()})[0]
    least = key == -(2**63)  # divided by -1, it is no matter of this test
    key = torch.where(least, 0, key)
    with torch.no_grad():
        quotient = torch.where(by == 0, at_zero(key), part(key, torch.where(by == 0, 1, by)))
        wanted = (module.user(feeds["user"]) * module.table(quotient % 101)).sum(1)
    # A wrong row of the table changes a score by tenths; FP32 sums of 5 terms differ by 1e-6.
    np.testing.assert_allclose(got[~least], wanted[~least].numpy(), atol=1e-5)


class Looked(nn.Module):
    """Embeddings of an item's padded tags, reduced by the function under test, beside a user feature."""

    def __init__(self, part: Callable[[Looked, Tensor], Tensor], bag: nn.EmbeddingBag) -> None:
        super().__init__()
        self.part = part
        self.user = nn.Linear(3, 5)
        self.positions = nn.Parameter(torch.randn(9, 5))
        self.bag = bag

    def forward(self, user: Tensor, tags: Tensor) -> Tensor:
        return (self.user(user) * self.part(self, tags)).sum(1)


LOOKUPS: dict[str, tuple[Callable[[Looked, Tensor], Tensor], dict[str, object]]] = {
    "positions counted among the tags": (lambda m, t: m.positions[torch.cumsum(t != 0, 1)].sum(1), {}),
    "positions from the end": (lambda m, t: m.positions[-torch.cumsum(t != 0, 1)].sum(1), {}),
    "sum of a bag": (lambda m, t: m.bag(t), {"mode": "sum"}),
    "mean of a bag": (lambda m, t: m.bag(t), {"mode": "mean"}),
    "maximum of a bag": (lambda m, t: m.bag(t), {"mode": "max"}),
    "sum of a padded bag": (lambda m, t: m.bag(t), {"mode": "sum", "padding_idx": 0}),
    "mean of a padded bag": (lambda m, t: m.bag(t), {"mode": "mean", "padding_idx": 0}),
    "maximum of a padded bag": (lambda m, t: m.bag(t), {"mode": "max", "padding_idx": 0}),
    "weighted bag": (lambda m, t: m.bag(t, per_sample_weights=(t % 3).float()), {"mode": "sum"}),
}


@pytest.mark.parametrize("name", LOOKUPS)
def test_lookups_of_padded_tags(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    part, settings = LOOKUPS[name]
    bag = nn.EmbeddingBag(50, 5, **settings)  # type: ignore[arg-type]  # by name
    module = Looked(part, bag).eval()
    made = split(module, (torch.randn(7, 3), torch.randint(0, 50, (7, 6))), user=("user",), item=("tags",))
    patterns = torch.tensor([[int(b) for b in f"{n:06b}"] for n in range(64)])  # every padding, none kept included
    feeds = {"user": torch.randn(64, 3), "tags": torch.randint(1, 50, (64, 6)) * patterns}
    stamp = Stamp("tags", "full", "fp32", ())
    file = export_subgraph(made.full, feeds, {n: "candidates" for n in feeds}, tmp_path / "full.onnx", stamp)
    got = ort.InferenceSession(str(file.path)).run(None, {n: v.numpy() for n, v in feeds.items()})[0]
    with torch.no_grad():
        wanted = module(feeds["user"], feeds["tags"]).numpy()
    # FP32 sums of 30 terms in another order, on values up to a few tens.
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


def test_rrelu_is_a_leaky_relu_in_eval_mode_and_refused_in_training(tmp_path: Path) -> None:
    class Activated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.user, self.item, self.activation = nn.Linear(3, 5), nn.Linear(4, 5), nn.RReLU(0.1, 0.4)

        def forward(self, user: Tensor, item: Tensor) -> Tensor:
            return (self.activation(self.user(user)) * self.activation(self.item(item))).sum(1)

    feeds = {"user": torch.randn(9, 3), "item": torch.randn(9, 4)}
    module = Activated().eval()
    made = split(module, feeds, user=("user",), item=("item",))
    stamp = Stamp("activated", "full", "fp32", ())
    file = export_subgraph(made.full, feeds, {n: "candidates" for n in feeds}, tmp_path / "full.onnx", stamp)
    got = ort.InferenceSession(str(file.path)).run(None, {n: v.numpy() for n, v in feeds.items()})[0]
    with torch.no_grad():
        np.testing.assert_allclose(got, module(**feeds).numpy(), rtol=1e-5, atol=1e-6)  # FP32 sums of 5 terms
    with pytest.raises(UgsepError, match=r"rrelu\.default in activation .* draws random numbers"):
        split(module.train(), feeds, user=("user",), item=("item",))


class Attention(nn.Module):
    """Target attention of an item over a user's padded history."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.history, self.item = nn.Embedding(50, 8), nn.Embedding(40, 8)
        added = form == "module, keys added"
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, add_bias_kv=added, add_zero_attn=added)

    def forward(self, history: Tensor, item: Tensor) -> Tensor:
        padding = history == 0
        keys, query = self.history(history), self.item(item)[:, None]
        if self.form in ("module", "module, keys added"):
            attended, _ = self.attention(query, keys, keys, key_padding_mask=padding, need_weights=False)
        elif self.form == "module, NaN replaced":  # as users write who have seen NaN elsewhere
            attended, _ = self.attention(query, keys, keys, key_padding_mask=padding, need_weights=False)
            attended = torch.nan_to_num(attended)
        elif self.form == "module on itself":  # as a history encoder does
            encoded, _ = self.attention(keys, keys, keys, key_padding_mask=padding, need_weights=False)
            attended = encoded.sum(1, keepdim=True)
        elif self.form == "bool mask":
            attended = F.scaled_dot_product_attention(query, keys, keys, attn_mask=~padding[:, None])
        elif self.form == "float mask":
            added = torch.zeros(padding.shape).masked_fill(padding, -torch.inf)
            attended = F.scaled_dot_product_attention(query, keys, keys, attn_mask=added[:, None], scale=0.3)
        elif self.form == "grouped heads":
            heads = torch.stack([query, -query, query + 1, 2 * query], 1)  # [N, 4, 1, D]
            pair = torch.stack([keys, keys.flip(-1)], 1)  # [N, 2, S, D]
            mask = ~padding[:, None, None]
            attended = F.scaled_dot_product_attention(heads, pair, pair, attn_mask=mask, enable_gqa=True).sum(1)
        else:
            attended = F.scaled_dot_product_attention(keys, keys, keys, is_causal=True)[:, -1:]
        return (attended * query).sum((1, 2))


@pytest.mark.parametrize(
    "form",
    [
        "module",
        "module, keys added",
        "module, NaN replaced",
        "module on itself",
        "bool mask",
        "float mask",
        "grouped heads",
        "causal",
    ],
)
def test_attention_gives_pytorch_s_values_without_any_key(form: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Attention(form).eval()
    made = split(module, (torch.randint(1, 50, (7, 6)), torch.arange(7)), user=("history",), item=("item",))
    assert prove_split(made).max_rel <= 1e-5
    patterns = torch.tensor([[int(b) for b in f"{n:06b}"] for n in range(64)])  # every padding, none kept included
    feeds = {"history": torch.randint(1, 50, (64, 6)) * patterns, "item": torch.randint(0, 40, (64,))}
    stamp = Stamp("attention", "full", "fp32", ())
    file = export_subgraph(made.full, feeds, {n: "candidates" for n in feeds}, tmp_path / "full.onnx", stamp)
    got = ort.InferenceSession(str(file.path)).run(None, {n: v.numpy() for n, v in feeds.items()})[0]
    # With gradients: the fast path of inference gives NaN, which neither training nor a trace does.
    wanted = module(feeds["history"], feeds["item"]).detach().numpy()
    assert np.isfinite(wanted).all()
    # FP32 sums of 8 terms in another order, on values up to a few tens.
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


class Replaced(nn.Module):
    def __init__(self, options: dict[str, float]) -> None:
        super().__init__()
        self.options = options

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        return torch.nan_to_num(user * 2 / item, **self.options).sum(1)


@pytest.mark.parametrize("options", [{}, {"nan": 2.5}, {"nan": -1.0, "posinf": 3.0, "neginf": -7.0}])
def test_nan_and_infinities_are_replaced_as_pytorch_does(options: dict[str, float], tmp_path: Path) -> None:
    made = split(Replaced(options).eval(), (torch.randn(7, 1), torch.randn(7, 1)), user=("user",), item=("item",))
    feeds = {"user": torch.tensor([[0.0], [1.0], [-1.0], [3.0]]), "item": torch.tensor([[0.0], [0.0], [0.0], [2.0]])}
    stamp = Stamp("replaced", "full", "fp32", ())
    file = export_subgraph(made.full, feeds, {n: "candidates" for n in feeds}, tmp_path / "full.onnx", stamp)
    got = ort.InferenceSession(str(file.path)).run(None, {n: v.numpy() for n, v in feeds.items()})[0]
    np.testing.assert_array_equal(got, Replaced(options)(**feeds).numpy())


@pytest.mark.parametrize("what", ["attention", "integers"])
def test_what_can_only_be_traced_again_is_refused_if_scores_would_differ(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ValueError("no program")

    monkeypatch.setattr("export.onnx_file.program_of", fail)
    stamp = Stamp("m", "full", "fp32", ())
    if what == "attention":
        example = {"history": torch.randint(1, 50, (7, 6)), "item": torch.arange(7)}
        made = split(Attention("module").eval(), example, user=("history",), item=("item",))
    else:
        example = {"user": torch.randn(7, 3), "key": torch.arange(7)}
        module = Hashed(lambda k: torch.div(k, 7, rounding_mode="floor")).eval()
        made = split(module, example, user=("user",), item=("key",))
    with pytest.raises(UgsepError, match="no program"):
        export_subgraph(made.full, example, {n: "candidates" for n in example}, tmp_path / "full.onnx", stamp)
