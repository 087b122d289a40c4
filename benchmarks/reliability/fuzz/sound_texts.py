"""A small model as people write it: a recipe, a policy of precisions and the declaration of its features."""

from __future__ import annotations

__all__ = ["FEATURES", "POLICY", "RECIPE"]

RECIPE = """\
model: zenith
config: {width: 16, layers: 1, user_tokens: 2, item_tokens: 2, hidden: 16, tower: 8}
training: {epochs: 1}
quantization:
  scheme: absmax
  policy:
    weights:
      - {glob: "item_tokenizer.*", precision: fp32, reason: "mixed"}
serving: {candidates: [1, 9], max_candidates: 64, max_users: 4, compile_for: []}
gates: {auc_change: 1.0, sqnr_db: 20.0, kendall_tau: 0.8, max_probability: 0.02}
"""
POLICY = """\
default: int8
block: 0
weights:
  - {glob: "item_tokenizer.*", precision: fp32, reason: "raw features"}
  - {glob: "user:heads.*", precision: fp16}
"""
FEATURES = {
    "tasks": ["like"],
    "features": [
        {"name": "user_id", "side": "user", "kind": "id", "vocab": 50},
        {"name": "age", "side": "user", "kind": "dense", "width": 3, "group": "profile"},
        {"name": "recent", "side": "user", "kind": "sequence", "vocab": 61, "width": 5, "table": "item_id"},
        {"name": "item_id", "side": "item", "kind": "id", "vocab": 61},
        {"name": "genres", "side": "item", "kind": "dense", "width": 7},
        {"name": "affinity", "side": "item", "kind": "dense", "width": 4},
    ],
}
