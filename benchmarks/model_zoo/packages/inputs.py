"""What the models of all packages are fed: fields of the user and of the item, a history, and weights that matter."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

ROWS = 5
VOCABULARY, WIDTH, HISTORY = 1000, 16, 30
USER_FIELDS = tuple(f"user_{i}" for i in range(8))
ITEM_FIELDS = tuple(f"item_{i}" for i in range(6))
FIELDS = (*USER_FIELDS, *ITEM_FIELDS)
DENSE = {"user_dense": 5, "item_dense": 4}
#: Layers of the networks; the sizes of the packages' own examples.
HIDDEN = (256, 128)
_LENGTHS = (HISTORY, 3, 11, 1, 20)


@dataclass(frozen=True)
class ZooModel:
    """A model with an example of its inputs and the names of those of each side."""

    module: nn.Module
    example: dict[str, Any]
    user: tuple[str, ...]
    item: tuple[str, ...]


Models = Mapping[str, Callable[[], ZooModel]]


class Features(nn.Module):
    """Feeds one dict of tensors to a model; ``call`` is the method to use."""

    def __init__(self, model: nn.Module, call: str = "forward") -> None:
        super().__init__()
        self.model = model
        self.call = call

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        """Return the model's scores [N] or [N, tasks]."""
        y: Tensor = getattr(self.model, self.call)(features)
        return y.squeeze(-1) if y.dim() > 1 and y.shape[-1] == 1 else y


def ids(names: Sequence[str] = FIELDS) -> dict[str, Tensor]:
    """Return random ids [ROWS] for every field; 0 is padding."""
    return {name: torch.randint(1, VOCABULARY, (ROWS,)) for name in names}


def dense() -> dict[str, Tensor]:
    """Return random numbers [ROWS, width] for the dense fields."""
    return {name: torch.randn(ROWS, width) for name, width in DENSE.items()}


def lengths() -> Tensor:
    """Return lengths of histories [ROWS], from one to the longest."""
    return torch.tensor(_LENGTHS)


def history(padded: bool = True) -> Tensor:
    """Return histories of ids [ROWS, HISTORY], zeros behind their ``lengths`` if padded."""
    drawn = torch.randint(1, VOCABULARY, (ROWS, HISTORY))
    return drawn * (torch.arange(HISTORY) < lengths()[:, None]) if padded else drawn


def spread(model: nn.Module) -> nn.Module:
    """Set weights to sizes of a trained model's, so that a wrong score is visible, and switch to eval mode."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "norm" in name.lower() or "bn" in name or parameter.dim() < 2 or not parameter.is_floating_point():
            continue
        fan_in = max(1, parameter.numel() // max(1, parameter.shape[0]))  # of linears and convolutions alike
        std = 0.5 if "embed" in name.lower() else fan_in**-0.5
        with torch.no_grad():
            parameter.normal_(std=std, generator=generator)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d) and module.running_mean is not None and module.running_var is not None:
            module.running_mean.normal_(generator=generator)
            module.running_var.uniform_(0.5, 2.0, generator=generator)
    return model.eval()
