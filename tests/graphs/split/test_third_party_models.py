"""Third-party models: split exactly, with the reuse that their structure allows."""

import importlib.util
import math

import pytest
import torch
from torch import Tensor, nn

from graphs.base.errors import UgsepError
from graphs.explain.explain import explain
from graphs.split.proof import prove_split
from graphs.split.split import split
from tests.graphs.third_party_models import THIRD_PARTY, make

# Least FLOP limit at 256 candidates, from the user columns of the first layers or from a whole encoder.
LEAST_LIMIT = {
    "DeepFM (deepctr-torch)": 1.4,
    "DCN-V2 (deepctr-torch)": 1.25,
    "AutoInt (deepctr-torch)": 1.25,
    "DIN (deepctr-torch)": 1.1,
    "DeepFM (torch-rechub)": 1.4,
    "DCN-V2 mixture (torch-rechub)": 1.2,
    "AutoInt (torch-rechub)": 1.4,
    "DIN (torch-rechub)": 1.1,
    "two-tower DSSM (torch-rechub)": 2.0,
    "MMoE, 2 tasks (torch-rechub)": 1.9,
    "BERT history + cross-attention (transformers)": 50.0,
}


def needs(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed; pip install 'ugsep[third-party]'")


@pytest.mark.slow
@pytest.mark.parametrize("name", THIRD_PARTY)
def test_third_party_model(name: str) -> None:
    needs(THIRD_PARTY[name][0])
    model = make(name)
    split_model = split(model.module, model.example, user=model.user, item=model.item)
    proof = prove_split(split_model)
    assert proof.max_abs <= 1e-5
    assert proof.row_max_abs <= 1e-6
    assert split_model.speedup_limit(256) >= LEAST_LIMIT[name]
    plain = (
        split(model.module, model.example, user=model.user, item=model.item, hoisting=False)
        if ("two-tower" in name or "BERT" in name)
        else None
    )
    if plain is not None:  # these need no hoisting: their towers are separate
        assert plain.item_cost == split_model.item_cost
    told = explain(split_model)
    assert math.isfinite(told.speedup_limit)
    assert told.meetings


def test_scores_of_the_fixtures_are_not_constant() -> None:
    """Scores differ between candidates: if an untrained model scored all alike, exactness would mean nothing."""
    needs("torch_rechub")
    model = make("DeepFM (torch-rechub)")
    with torch.no_grad():
        assert float(model.module(**model.example).std()) > 0.05


def test_training_mode_is_refused_by_name() -> None:
    needs("torch_rechub")
    model = make("two-tower DSSM (torch-rechub)")
    with pytest.raises(
        UgsepError, match=r"rows depend on each other: .*model\.(user|item)_mlp\.mlp\..* call \.eval\(\)"
    ):
        split(model.module.train(), model.example, user=model.user, item=model.item)


def test_written_out_rms_norm_and_rotary_positions() -> None:
    """A decoder block as Hugging Face writes it: RMSNorm from pow and rsqrt, rotary positions from a buffer."""
    needs("transformers")
    from transformers import LlamaConfig, LlamaModel

    class Ranker(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            config = LlamaConfig(
                vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4
            )
            self.body = LlamaModel(config)
            self.head = nn.Linear(64, 1)
            self.items = nn.Embedding(50, 32)

        def forward(self, history: Tensor, item: Tensor) -> Tensor:
            seen = self.body(input_ids=history, use_cache=False).last_hidden_state[:, -1]
            return self.head(torch.cat([seen, self.items(item)], -1)).squeeze(-1)

    torch.manual_seed(0)
    example = {"history": torch.randint(0, 50, (4, 6)), "item": torch.randint(0, 50, (4,))}
    split_model = split(Ranker().eval(), example, user=["history"], item=["item"])
    assert prove_split(split_model).max_rel <= 1e-6
    assert split_model.reusable_share > 0.99
