"""The smallest model with every stage of a build, a table and a layer per side: a factory for ``ugsep build``."""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn

#: Its sides, and a recipe without bounds on quality or speed: random weights of 16 columns have neither.
OPTIONS = ("--user", "user_id", "--item", "genres")
RECIPE = """model: small
quantization: {scheme: absmax}
serving: {candidates: [1, 9], max_candidates: 64, max_users: 1, compile_for: [],
  precision: {user: w8a32, item: w8a32}}  # int8 products would be chosen by timing
gates: {auc_change: 1.0, fraction_of_limit: 0.0, sqnr_db: 10.0, kendall_tau: 0.5, max_probability: 0.5}
"""


class Small(nn.Module):
    """A user id and five numbers of an item."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 16)
        self.user = nn.Linear(16, 16)
        self.item = nn.Linear(5, 16)
        self.out = nn.Linear(32, 1)

    def forward(self, user_id: Tensor, genres: Tensor) -> Tensor:
        """Return a logit per row, [N, 1], of ``user_id`` [N] and ``genres`` [N, 5]."""
        user, item = torch.relu(self.user(self.table(user_id))), torch.relu(self.item(genres))
        return self.out(torch.cat([user, item], dim=1))  # type: ignore[no-any-return]


def make() -> tuple[Small, tuple[Tensor, Tensor]]:
    """Return the model with weights drawn from the seed ``SMALL_MODEL_SEED``, and example inputs."""
    torch.manual_seed(int(os.environ.get("SMALL_MODEL_SEED", "0")))
    return Small().eval(), (torch.zeros(2, dtype=torch.int64), torch.randn(2, 5))
