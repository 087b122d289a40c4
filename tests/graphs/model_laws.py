"""Tiny configs of every architecture, and the law of UG-Sep as checks that a broken model fails."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from graphs.base.features import Feature, random_rows
from graphs.layers.ugsep import Tokens
from graphs.models.ranking_model import ModelConfig, RankingModel, initialise
from graphs.models.table import model_class

FEATURES = (
    Feature("uid", "user", "id", vocab=11, group="who"),
    Feature("history", "user", "sequence", vocab=13, width=4, group="past", table="iid"),
    Feature("profile", "user", "dense", width=5, group="who"),
    Feature("iid", "item", "id", vocab=13, group="what"),
    Feature("tags", "item", "sequence", vocab=7, width=3, group="what"),
    Feature("cross", "item", "dense", width=6, group="cross"),
)
RATIOS = {"1:2": (3, 6), "1:1": (4, 4), "2:1": (4, 2), "3:1": (6, 2), "5:1": (10, 2)}

# Settings of each variant at T tokens; width 24 or 36, divisible by T and by the heads.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "zenith": ("zenith", {"hidden": 10}),
    "rankmixer": ("rankmixer", {"hidden": 20, "embedding_width": 12}),
    "rankmixer-regrouped": (
        "rankmixer",
        {"hidden": 20, "embedding_width": 12, "mixed_user_tokens": 2, "mixed_item_tokens": 4},
    ),
    "rankmixer-moe": ("rankmixer", {"hidden": 5, "embedding_width": 12, "experts": 3, "l1_weight": 0.01}),
    "tokenmixer-large": ("tokenmixer-large", {"hidden": 10, "layers": 3}),
    "tokenmixer-large-split": (
        "tokenmixer-large",
        {
            **{"hidden": 10, "layers": 4, "global_token": "split", "read_out": "global", "auxiliary_weight": 0.1},
            **{"mixed_user_rows": 1, "mixed_item_rows": 2},
        },
    ),
    "tokenmixer-large-moe": ("tokenmixer-large", {"hidden": 20, "experts": 4, "active_experts": 3}),
    "zenith-pp": ("zenith-pp", {"hidden": 5, "experts": 4, "active_experts": 2, "attention_heads": 3}),
    "unimixer": ("unimixer", {"hidden": 10, "embedding_width": 12, "block": 6}),
    "unimixing-lite": (
        "unimixer",
        {"hidden": 10, "embedding_width": 12, "block": 6, "lite": True, "bases": 3, "rank": 2},
    ),
}

# Models over [history | item]: their layers take positions, not the tokens of both sides.
SEQUENCES: dict[str, tuple[str, dict[str, Any]]] = {
    "hstu": ("hstu", {"attention_heads": 3, "user_tokens": 2, "item_tokens": 1}),
    "hstu-several": ("hstu", {"attention_heads": 2, "user_tokens": 1, "item_tokens": 3}),
    "onetrans": ("onetrans", {"attention_heads": 4, "hidden": 10, "user_tokens": 2, "item_tokens": 2}),
    "onetrans-causal": ("onetrans", {"mask": "causal", "hidden": 10, "user_tokens": 3, "item_tokens": 1}),
}
ALL = {**VARIANTS, **SEQUENCES}


def make_config(variant: str, ratio: str, **changes: Any) -> ModelConfig:
    """Return a tiny config; ``changes`` replace single fields."""
    architecture, settings = ALL[variant]
    user, item = RATIOS[ratio]
    sizes = {"width": 36 if user + item == 9 else 24, "layers": 2, "tower": 8, "tasks": ("like", "share")}
    values = {"features": FEATURES, "user_tokens": user, "item_tokens": item, **sizes, **settings, **changes}
    return model_class(architecture).config_class(**values)


def make_model(config: ModelConfig, seed: int = 0) -> RankingModel:
    """Return a random model in eval mode without parameters at neutral values, which could hide errors."""
    model = _class_of(config)(config)
    initialise(model, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def _class_of(config: ModelConfig) -> Callable[[ModelConfig], RankingModel]:
    names = {a for a, _ in ALL.values()}
    return next(model_class(n) for n in names if model_class(n).config_class is type(config))


def make_rows(rows: int, seed: int, scale: float = 1.0) -> dict[str, Tensor]:
    """Return random inputs, dense ones times ``scale``."""
    values = random_rows(FEATURES, rows, torch.Generator().manual_seed(seed))
    return {k: v * scale if v.is_floating_point() else v for k, v in values.items()}


def side_from(rows: dict[str, Tensor], other: dict[str, Tensor], side: str) -> dict[str, Tensor]:
    """Return ``rows`` with the inputs of one side taken from ``other``."""
    return {f.name: (other if f.side == side else rows)[f.name] for f in FEATURES}


def layer_tokens(model: RankingModel, inputs: dict[str, Tensor]) -> list[Tokens]:
    """Return the ``Tokens`` of every layer, in order."""
    found: list[Tokens] = []

    def collect(_: Any, __: Any, output: Any) -> None:
        found.extend(t for t in (output if isinstance(output, tuple) else (output,)) if isinstance(t, Tokens))

    layers = model.get_submodule("layers")
    hooks = [layer.register_forward_hook(collect) for layer in layers.children()]
    try:
        model(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    assert found
    return found


def user_rows(model: RankingModel, inputs: dict[str, Tensor]) -> list[Tensor]:
    """Return the user rows [n, N, D] of every layer's output."""
    rows = [t.user for t in layer_tokens(model, inputs) if t.user is not None]
    assert rows
    return rows


def check_user_rows_fixed(model: RankingModel, one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """Assert that user rows are bit-identical if the items of ``one`` are replaced by those of ``other``."""
    with torch.no_grad():
        before, after = user_rows(model, one), user_rows(model, side_from(one, other, "item"))
    for index, (a, b) in enumerate(zip(before, after, strict=True)):
        assert torch.equal(a, b), f"user rows of output {index} changed with the items by {(a - b).abs().max()}"


def check_no_gradient(model: RankingModel, inputs: dict[str, Tensor]) -> None:
    """Assert that user rows have zero gradient with respect to every item vector, and item rows do not."""
    leaves: dict[str, Tensor] = {}

    def detach(_: Any, __: Any, vectors: dict[str, Tensor]) -> dict[str, Tensor]:
        leaves.update({k: v.detach().requires_grad_() for k, v in vectors.items()})
        return dict(leaves)

    hook = model.get_submodule("embedding").register_forward_hook(detach)
    try:
        tokens = layer_tokens(model, inputs)
    finally:
        hook.remove()
    items = [leaves[f.name] for f in FEATURES if f.side == "item"]
    users = [leaves[f.name] for f in FEATURES if f.side == "user"]
    loss = torch.stack([(t.user**2).sum() for t in tokens if t.user is not None]).sum()
    for name, gradient in zip(
        leaves, torch.autograd.grad(loss, items, retain_graph=True, allow_unused=True), strict=False
    ):
        assert gradient is None or not gradient.any(), f"user rows have a gradient to an item vector ({name})"
    for gradient in torch.autograd.grad((tokens[-1].item ** 2).sum(), [*items, *users], allow_unused=True):
        assert gradient is not None, "an input never reaches the item rows"
        assert gradient.any(), "an input never reaches the item rows"


def check_users_reach_items(model: RankingModel, one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """Assert that every item and user row changes if the users are replaced by those of ``other``."""
    with torch.no_grad():
        before, after = (layer_tokens(model, inputs)[-1] for inputs in (one, side_from(one, other, "user")))
    for a, b in ((before.user, after.user), (before.item, after.item)):
        if a is not None and b is not None:
            changed = (a != b).any(-1)  # [tokens, N]
            assert changed.all(), f"rows {changed.logical_not().nonzero().tolist()} do not change with the user"
