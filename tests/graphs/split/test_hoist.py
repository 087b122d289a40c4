"""Hoisting is exact algebra: every form against the whole model, in double and single precision."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from graphs.split.proof import prove_split
from graphs.split.split import Split, split
from tests.suites import slow_but

B, NU, NI, D, M = 4, 5, 3, 32, 40  # rows, user tokens, item tokens, width, output width


class Model(nn.Module):
    def __init__(self, work: Callable[["Model", Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.work = work
        total = NU + NI
        self.dense = nn.Linear(total * D, M)
        self.narrow = nn.Linear(total * D, M, bias=False)
        self.shared = nn.Linear(D, M)
        self.per_token = nn.Parameter(torch.randn(total, D, M) * 0.2)
        self.mixed = nn.Parameter(torch.randn(8, total * 4, M) * 0.2)
        self.spread = nn.Parameter(torch.randn(NI, total))
        self.rms = nn.RMSNorm(total * D, eps=1e-5)
        self.layer = nn.LayerNorm(total * D)
        self.token_layer = nn.LayerNorm(D)
        self.mixed_norm = nn.RMSNorm(total * 4, eps=1e-5)
        self.gain = nn.Parameter(torch.rand(total * D) + 0.5)
        for parameter in (self.rms.weight, self.layer.weight, self.layer.bias, self.mixed_norm.weight):
            nn.init.uniform_(parameter, 0.5, 1.5)

    def forward(self, u: Tensor, g: Tensor) -> Tensor:
        u, g = torch.tanh(u), g * 1.5  # u [N, NU, D], g [N, NI, D]
        y = self.work(self, u, g)
        return (y * torch.linspace(-1, 1, y.shape[-1], dtype=y.dtype)).flatten(1).sum(-1)


def flat(u: Tensor, g: Tensor) -> Tensor:
    return torch.cat([u.flatten(1), g.flatten(1)], -1)


def mixed_tokens(u: Tensor, g: Tensor) -> Tensor:
    x = torch.cat([u, g], 1).transpose(0, 1)  # [T, N, D], T = 8
    return x.reshape(NU + NI, -1, 8, 4).permute(2, 1, 0, 3).flatten(2)  # [H = 8, N, T*4]


def root_mean_square(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)


def attention(m: Model, u: Tensor, g: Tensor) -> Tensor:
    keys = m.shared(torch.cat([u, g], 1))  # [N, T, M]
    return (m.shared(g) @ keys.mT).softmax(-1) @ keys


FORMS: dict[str, tuple[Callable[[Model, Tensor, Tensor], Tensor], int]] = {
    "linear": (lambda m, u, g: m.dense(flat(u, g)), 1),
    "item first": (lambda m, u, g: m.dense(flat(g, u)), 1),
    "interleaved": (lambda m, u, g: m.dense(torch.cat([u[:, 0], g[:, 0], flat(u[:, 1:], g[:, 1:])], 1)), 1),
    "squared": (lambda m, u, g: m.dense((x := flat(u, g)) * x), 1),
    "nested cat": (lambda m, u, g: m.dense(torch.cat([flat(u, g[:, :1]), g[:, 1:].flatten(1)], 1)), 1),
    "two readers": (lambda m, u, g: F.silu(m.dense(flat(u, g))) * m.narrow(flat(u, g)), 2),
    "tied": (lambda m, u, g: m.dense(flat(u, g)) + m.dense(flat(g, u)), 2),
    "stacked tokens": (lambda m, u, g: m.dense(torch.stack([*u.unbind(1), *g.unbind(1)], 1).flatten(1)), 1),
    "token cat": (lambda m, u, g: m.dense(torch.cat([u, g], 1).reshape(u.shape[0], -1)), 1),
    "rms norm": (lambda m, u, g: m.dense(m.rms(flat(u, g))), 1),
    "rms norm, item first": (lambda m, u, g: m.dense(m.rms(flat(g, u))), 1),
    "layer norm": (lambda m, u, g: m.dense(m.layer(flat(u, g) + 30.0)), 1),
    "layer norm, item first": (lambda m, u, g: m.narrow(m.layer(flat(g, u))), 1),
    "plain norms": (lambda m, u, g: m.narrow(F.rms_norm(flat(u, g), (8 * D,)) + m.layer(flat(u, g))), 0),
    "norm without gain": (lambda m, u, g: m.narrow(F.layer_norm(flat(u, g), (8 * D,))), 1),
    "written-out norm": (lambda m, u, g: m.dense(root_mean_square(flat(u, g)) * m.gain), 1),
    "tokenwise": (lambda m, u, g: (torch.cat([u, g], 1).transpose(0, 1) @ m.per_token).mT.permute(2, 0, 1), 1),
    "shared": (lambda m, u, g: m.shared(torch.cat([u, g], 1)), 1),
    "two shared": (lambda m, u, g: F.linear(F.gelu(m.shared(torch.cat([u, g], 1))), m.shared.weight.mT), 2),
    "norm per token": (lambda m, u, g: m.shared(m.token_layer(torch.cat([u, g], 1))), 1),
    "mixing": (lambda m, u, g: (mixed_tokens(u, g) @ m.mixed).transpose(0, 1), 1),
    "pre-norm mixing": (lambda m, u, g: (m.mixed_norm(mixed_tokens(u, g)) @ m.mixed).transpose(0, 1), 1),
    "spread": (lambda m, u, g: m.spread @ torch.cat([u, g], 1).repeat(1, 1, 2), 0),
    "keys": (lambda m, u, g: attention(m, u, g), 1),
    "slice reads one side": (lambda m, u, g: m.shared(torch.cat([u, g], 1)[:, :NU]) + g[:, :1, :1], 0),
    "sums": (lambda m, u, g: torch.cat([u, g], 1).square().sum(1) + torch.cat([g, u], 1).mean((1, 2))[:, None], 0),
    "sum": (lambda m, u, g: m.shared(u[:, :NI] + g), 0),
    "too small": (lambda m, u, g: m.shared(torch.cat([u[:, :NI, :1], g[:, :, 1:]], -1)), 0),
}  # fmt: skip


def made(name: str, dtype: torch.dtype, seed: int = 0) -> tuple[Split, Split]:
    torch.manual_seed(seed)
    model = Model(FORMS[name][0]).eval().to(dtype)
    example = {"u": torch.randn(B, NU, D, dtype=dtype), "g": torch.randn(B, NI, D, dtype=dtype)}
    return (
        split(model, example, user=["u"], item=["g"]),
        split(model, example, user=["u"], item=["g"], hoisting=False),
    )


#: Each moves to the user graph by a rule of its own; the others differ in the order or the number of parts.
OF_EACH_KIND = (
    *("linear", "nested cat", "tied", "stacked tokens", "rms norm", "layer norm, item first", "written-out norm"),
    *("tokenwise", "shared", "pre-norm mixing", "keys", "too small"),
)


@pytest.mark.parametrize("name", slow_but(OF_EACH_KIND, FORMS))
def test_hoisted_equals_whole(name: str) -> None:
    for dtype, bound in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        hoisted, plain = made(name, dtype)
        assert prove_split(hoisted).max_rel <= bound
        assert len(hoisted.hoisted) == FORMS[name][1]
        assert not plain.hoisted
        if hoisted.hoisted:
            # The shared GEMM of "keys" counts for both sides; every other form saves exactly its number.
            saved = plain.item_cost.gemm_flops - hoisted.item_cost.gemm_flops
            assert saved == sum(h.saved_flops for h in hoisted.hoisted)


def test_sums_leave_the_users_part_to_the_user_graph() -> None:
    hoisted, plain = made("sums", torch.float32)
    assert plain.state_bytes == 4 * NU * D
    assert hoisted.state_bytes == 4 * (D + 1)
    assert hoisted.item_cost.flops < plain.item_cost.flops


def test_layer_norm_does_not_cancel() -> None:
    """Means a thousand times the deviation: E[x^2] - E[x]^2 in FP32 would be off by 10 %."""
    torch.manual_seed(1)
    model = Model(lambda m, u, g: m.dense(m.layer(flat(u, g) * 1e-3 + 1.0))).eval()
    example = {"u": torch.randn(B, NU, D), "g": torch.randn(B, NI, D)}
    assert (
        prove_split(split(model, example, user=["u"], item=["g"]), tolerance=1e-3).max_rel <= 5e-4
    )  # 1e-3 signal on 1.0: 6e-8 / 1e-3


def test_slices_share_the_parameters_memory() -> None:
    hoisted, _ = made("pre-norm mixing", torch.float32)
    weight = hoisted.full.module.get_parameter("mixed")
    inside = range(weight.data_ptr(), weight.data_ptr() + weight.nbytes)
    for subgraph, name in ((hoisted.user, "mixed.user"), (hoisted.item, "mixed.item")):
        names = dict(subgraph.module.named_parameters())
        assert names[name].data_ptr() in inside
        assert "mixed" not in names
        assert names[name].untyped_storage().data_ptr() == weight.untyped_storage().data_ptr()
    assert hoisted.user.module.get_parameter("mixed.user").shape == (8, NU * 4, M)
    assert hoisted.item.module.get_parameter("mixed.item").shape == (8, NI * 4, M)


def test_a_weight_that_is_still_read_whole_keeps_its_name() -> None:
    torch.manual_seed(0)
    model = Model(lambda m, u, g: m.dense(flat(u, g)) + m.dense(flat(g.repeat(1, 2, 1)[:, :NU], g)))
    split_model = split(model, {"u": torch.randn(B, NU, D), "g": torch.randn(B, NI, D)}, user=["u"], item=["g"])
    assert len(split_model.hoisted) == 1
    assert {"dense.weight", "dense.weight_item"} <= set(dict(split_model.item.module.named_parameters()))
    assert prove_split(split_model).max_rel <= 1e-6


def test_dead_columns_are_not_computed() -> None:
    torch.manual_seed(0)
    model = Model(lambda m, u, g: (m.shared(g) + m.shared(g * 2))[..., 30:])
    example = {"u": torch.randn(B, NU, D), "g": torch.randn(B, NI, D)}

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, u: Tensor, g: Tensor) -> Tensor:
            return self.inner(u, g) + torch.exp(u).sum((1, 2))

    split_model = split(Both(), example, user=["u"], item=["g"])
    assert split_model.item_cost.gemm_flops == 2 * 2 * NI * D * 10  # two products, 10 of 40 columns
    assert split_model.item.module.get_parameter("inner.shared.weight.columns30_40").shape == (10, D)
    assert prove_split(split_model).max_rel <= 1e-6


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_random_concatenations(data: st.DataObject) -> None:
    """Segments of random sides and widths, a random norm and a random product: always equal."""
    segments = data.draw(st.lists(st.tuples(st.sampled_from("ug"), st.integers(1, 40)), min_size=2, max_size=5))
    norm = data.draw(st.sampled_from(["none", "rms", "layer"]))
    out = data.draw(st.integers(1, 50))
    width = sum(n for _, n in segments)

    class Random(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = {"none": nn.Identity, "rms": nn.RMSNorm, "layer": nn.LayerNorm}[norm](width)
            self.product = nn.Linear(width, out)

        def forward(self, u: Tensor, g: Tensor) -> Tensor:
            sides = {"u": u.cos(), "g": g.sin()}
            row = torch.cat([sides[side][:, :n] for side, n in segments], -1)
            y: Tensor = self.product(self.norm(row))
            return y + u.exp().sum(-1, keepdim=True) * g.sum(-1, keepdim=True)

    torch.manual_seed(data.draw(st.integers(0, 99)))
    example = {"u": torch.randn(3, 40, dtype=torch.float64), "g": torch.randn(3, 40, dtype=torch.float64)}
    proof = prove_split(split(Random().double().eval(), example, user=["u"], item=["g"]))
    assert proof.max_rel <= 1e-12
