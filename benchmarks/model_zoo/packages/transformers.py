"""Sequence classifiers of transformers: the user's history is a prefix, the item the last tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.model_zoo.packages.inputs import ROWS, VOCABULARY, Models, ZooModel, history, spread

_HIDDEN, _LAYERS, _HEADS, _ITEM_TOKENS = 64, 2, 4, 3
_LLAMA = {
    "hidden_size": _HIDDEN,
    "num_hidden_layers": _LAYERS,
    "num_attention_heads": _HEADS,
    "num_key_value_heads": 2,
    "intermediate_size": 256,
    "max_position_embeddings": 64,
}
_BERT = {
    "hidden_size": _HIDDEN,
    "num_hidden_layers": _LAYERS,
    "num_attention_heads": _HEADS,
    "intermediate_size": 256,
    "max_position_embeddings": 64,
}


class Prefixed(nn.Module):
    """Reads the user's history and the item's tokens as one sequence, and returns the classifier's first logit."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, history: Tensor, item: Tensor) -> Tensor:
        """Return scores [N] of histories [N, L] and items [N, tokens]."""
        y: Tensor = self.model(input_ids=torch.cat([history, item], 1)).logits[:, 0]
        return y


class LastHidden(nn.Module):
    """The same with a head of its own on the last position, for models without a classifier."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.head = nn.Linear(_HIDDEN, 1)

    def forward(self, history: Tensor, item: Tensor) -> Tensor:
        """Return scores [N] of histories [N, L] and items [N, tokens]."""
        y: Tensor = self.head(self.model(input_ids=torch.cat([history, item], 1)).last_hidden_state[:, -1])
        return y.squeeze(1)


def _example() -> dict[str, Tensor]:
    return {"history": history(padded=False), "item": torch.randint(1, VOCABULARY, (ROWS, _ITEM_TOKENS))}


def _classifier(name: str, **settings: Any) -> Callable[[], ZooModel]:
    def make() -> ZooModel:
        import transformers

        config = getattr(transformers, f"{name}Config")(
            vocab_size=VOCABULARY, num_labels=2, pad_token_id=0, **settings
        )
        model = getattr(transformers, f"{name}ForSequenceClassification")(config)
        return ZooModel(spread(Prefixed(model)), _example(), ("history",), ("item",))

    return make


def _last_hidden(name: str, **settings: Any) -> Callable[[], ZooModel]:
    def make() -> ZooModel:
        import transformers

        config = getattr(transformers, f"{name}Config")(vocab_size=VOCABULARY, **settings)
        model = getattr(transformers, f"{name}Model")(config)
        return ZooModel(spread(LastHidden(model)), _example(), ("history",), ("item",))

    return make


MODELS: Models = {
    "GPT-2": _classifier("GPT2", n_embd=_HIDDEN, n_layer=_LAYERS, n_head=_HEADS, n_positions=64),
    "Llama": _classifier("Llama", **_LLAMA),
    "Mistral": _classifier("Mistral", **_LLAMA, sliding_window=None),
    "Qwen2": _classifier("Qwen2", **_LLAMA),
    "Qwen3": _classifier("Qwen3", **_LLAMA, head_dim=16),
    "Gemma": _classifier("Gemma", **_LLAMA, head_dim=16),
    "Phi": _classifier("Phi", **_LLAMA),
    "GPT-NeoX": _classifier("GPTNeoX", **_BERT),
    "OPT": _classifier(
        "OPT", hidden_size=_HIDDEN, word_embed_proj_dim=_HIDDEN, ffn_dim=256, num_hidden_layers=_LAYERS,
        num_attention_heads=_HEADS, max_position_embeddings=64,
    ),
    "BLOOM": _classifier("Bloom", hidden_size=_HIDDEN, n_layer=_LAYERS, n_head=_HEADS),
    "Llama, last position": _last_hidden("Llama", **_LLAMA),
    "GPT-2, last position": _last_hidden("GPT2", n_embd=_HIDDEN, n_layer=_LAYERS, n_head=_HEADS, n_positions=64),
    # Without a cache transformers looks for packed sequences, in positions that are the same in all rows.
    "Llama, last position, no cache": _last_hidden("Llama", **_LLAMA, use_cache=False),
    "BERT": _classifier("Bert", **_BERT),
    "RoBERTa": _classifier("Roberta", **_BERT),
    "ELECTRA": _classifier("Electra", **_BERT, embedding_size=32),
    "DistilBERT": _classifier(
        "DistilBert", dim=_HIDDEN, n_layers=_LAYERS, n_heads=_HEADS, hidden_dim=256, max_position_embeddings=64
    ),
}  # fmt: skip
