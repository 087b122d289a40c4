"""Small TorchRec models as factories: ``(module, example)``, with trained-looking parameters."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
from torch import Tensor, nn

#: TorchRec is imported by the tests that use it, as this takes seconds.
needs_torchrec = pytest.mark.skipif(
    importlib.util.find_spec("torchrec") is None, reason="TorchRec is not installed; make torchrec"
)
USER, ITEM = ("history", "country"), ("item", "tags")
VOCABULARY = {"history": 40, "country": 7, "item": 40, "tags": 12}
WIDTH, DENSE = 8, 5


def jagged(lengths: dict[str, list[int]], weighted: bool = False, seed: int = 0) -> Any:
    """Return random features with these numbers of ids per row."""
    from torchrec import KeyedJaggedTensor

    generator = torch.Generator().manual_seed(seed)
    ids = [
        torch.randint(0, VOCABULARY[name], (sum(counts),), generator=generator) for name, counts in lengths.items()
    ]
    values = torch.cat(ids)
    return KeyedJaggedTensor(
        keys=list(lengths),
        values=values,
        lengths=torch.tensor([count for counts in lengths.values() for count in counts]),
        weights=torch.randn(len(values), generator=generator) if weighted else None,
    )


LENGTHS = {"history": [3, 0, 5, 1], "country": [1, 1, 1, 1], "item": [1, 1, 1, 1], "tags": [2, 1, 0, 3]}


def bags(weighted: bool = False, **changes: Any) -> Any:
    """Return a collection of three tables; history and item share one."""
    from torchrec import EmbeddingBagCollection, EmbeddingBagConfig
    from torchrec.modules.embedding_configs import PoolingType

    pooling = PoolingType.SUM if weighted else PoolingType.MEAN
    tables = [
        EmbeddingBagConfig(name="goods", num_embeddings=40, embedding_dim=WIDTH, feature_names=["history", "item"]),
        EmbeddingBagConfig(name="countries", num_embeddings=7, embedding_dim=WIDTH, feature_names=["country"]),
        EmbeddingBagConfig(
            name="tags", num_embeddings=12, embedding_dim=WIDTH, feature_names=["tags"], pooling=pooling
        ),
    ]
    for table in tables:
        for name, value in changes.items():
            setattr(table, name, value)
    return EmbeddingBagCollection(tables=tables, is_weighted=weighted)


def spread(module: nn.Module) -> nn.Module:
    """Set parameters to values as large as a trained model's, so that wrong scores are visible."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            deviation = 0.5 if "embedding" in name else parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 0.1
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * deviation)
    return module.eval()


def example(weighted: bool = False) -> dict[str, Any]:
    dense = torch.randn(4, DENSE, generator=torch.Generator().manual_seed(1))
    return {"dense_features": dense, "sparse_features": jagged(LENGTHS, weighted)}


def dlrm() -> tuple[nn.Module, dict[str, Any]]:
    from torchrec.models.dlrm import DLRM

    return spread(DLRM(bags(), DENSE, [16, WIDTH], [32, 16, 1])), example()


def dlrm_dcn() -> tuple[nn.Module, dict[str, Any]]:
    from torchrec.models.dlrm import DLRM_DCN

    return spread(DLRM_DCN(bags(), DENSE, [16, WIDTH], [32, 1], dcn_num_layers=2, dcn_low_rank_dim=6)), example()


def deepfm() -> tuple[nn.Module, dict[str, Any]]:
    from torchrec.models.deepfm import SimpleDeepFMNN

    return spread(SimpleDeepFMNN(DENSE, bags(), hidden_layer_size=16, deep_fm_dimension=12)), example()


def weighted() -> tuple[nn.Module, dict[str, Any]]:
    from torchrec.models.dlrm import DLRM

    return spread(DLRM(bags(weighted=True), DENSE, [16, WIDTH], [32, 1])), example(weighted=True)


class Regroups(nn.Module):
    """Two collections over the same features, regrouped by side."""

    def __init__(self) -> None:
        super().__init__()
        from torchrec.modules.regroup import KTRegroupAsDict

        self.first, self.second = bags(), bags()
        self.regroup = KTRegroupAsDict([["history", "country"], ["item", "tags"]], ["user", "item"])
        self.head = nn.Linear(6 * WIDTH, 1)

    def forward(self, features: Any) -> Tensor:
        groups = self.regroup([self.first(features)])
        again = self.second(features).to_dict()
        y: Tensor = self.head(torch.cat([groups["user"], groups["item"], again["item"], again["history"]], 1))
        return y


def regroups() -> tuple[nn.Module, dict[str, Any]]:
    return spread(Regroups()), {"features": jagged(LENGTHS)}


class Sequences(nn.Module):
    """An EmbeddingCollection: attention of the item over the history."""

    def __init__(self) -> None:
        super().__init__()
        from torchrec import EmbeddingCollection, EmbeddingConfig

        table = EmbeddingConfig(
            name="goods", num_embeddings=40, embedding_dim=WIDTH, feature_names=["history", "item"]
        )
        self.embeddings = EmbeddingCollection(tables=[table])
        self.keys = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(2 * WIDTH, 1)

    def forward(self, features: Any) -> Tensor:
        found = self.embeddings(features)
        history = self.keys(found["history"].to_padded_dense(5)).relu()
        item = found["item"].values()
        hidden = torch.arange(5) >= features["history"].lengths().unsqueeze(1)
        scores = torch.einsum("nld,nd->nl", history, item).masked_fill(hidden, -1e4)
        seen = torch.einsum("nl,nld->nd", scores.softmax(1), history)
        y: Tensor = self.head(torch.cat([seen, item], 1))[:, 0]
        return y


def sequences() -> tuple[nn.Module, dict[str, Any]]:
    return spread(Sequences()), {"features": jagged({n: LENGTHS[n] for n in ("history", "item")})}


class Towers(nn.Module):
    """Users and items in jagged tensors of their own, looked up by one collection each."""

    def __init__(self) -> None:
        super().__init__()
        from torchrec import EmbeddingBagCollection, EmbeddingBagConfig

        def one(name: str) -> Any:
            config = EmbeddingBagConfig(name="t", num_embeddings=7, embedding_dim=WIDTH, feature_names=[name])
            return EmbeddingBagCollection(tables=[config])

        self.users, self.items = one("country"), one("country")
        self.tower = nn.Linear(WIDTH, WIDTH)

    def forward(self, user: Any, item: Any) -> Tensor:
        one, other = self.users(user).values(), self.items(item).values()
        return (self.tower(one).relu() * other).sum(1)


def towers() -> tuple[nn.Module, dict[str, Any]]:
    lengths = {"country": [2, 1, 0, 1]}
    return spread(Towers()), {"user": jagged(lengths), "item": jagged(lengths, seed=1)}


MODELS = {f.__name__: f for f in (dlrm, dlrm_dcn, deepfm, weighted, regroups, sequences, towers)}
