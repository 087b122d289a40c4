"""A bundle's engines on plain ONNX Runtime, as another server runs them: imports NumPy and onnxruntime only.

It is copied into the environments of the other servers. ``spec.json`` beside it says what to load.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort


class PlainEngines:
    """User and item engine with a cache of user states; the variants are chosen as the bundle's own runtime does."""

    def __init__(self, spec_file: Path) -> None:
        spec = json.loads(spec_file.read_text())
        self.user_inputs, self.item_inputs = spec["user_inputs"], spec["item_inputs"]
        self.states, self.outputs = spec["states"], spec["outputs"]
        self.few_up_to, self.cached_users = spec["few_up_to"], spec["cached_users"]
        self.user = {name: _session(path, spec["user_session"]) for name, path in spec["user"].items()}
        self.item = {name: _session(path, spec["item_session"]) for name, path in spec["item"].items()}
        self.cache: OrderedDict[bytes, dict[str, Any]] = OrderedDict()

    def score(self, features: Mapping[str, Any]) -> dict[str, Any]:
        """Return the logits of every task for one user's candidates."""
        user = {name: features[name] for name in self.user_inputs}
        return self.item_scores(features, self.state(user))

    def state(self, user: Mapping[str, Any]) -> dict[str, Any]:
        """Return the user's state, from the cache if the same features were seen."""
        digest = hashlib.blake2b(digest_size=16)
        for value in user.values():
            digest.update(value.tobytes())
        key = digest.digest()
        found = self.cache.get(key)
        if found is None:
            found = self.user_state(user)
            if self.cached_users:
                self.cache[key] = found
                if len(self.cache) > self.cached_users:
                    self.cache.popitem(last=False)
        else:
            self.cache.move_to_end(key)
        return found

    def user_state(self, user: Mapping[str, Any]) -> dict[str, Any]:
        """Run the user graph."""
        session = self.user.get("few_rows", self.user["any"])
        return dict(zip(self.states, session.run(self.states, dict(user)), strict=True))

    def item_scores(self, items: Mapping[str, Any], state: Mapping[str, Any]) -> dict[str, Any]:
        """Run the item graph for one user."""
        feeds = {name: items[name] for name in self.item_inputs} | dict(state)
        rows = len(feeds[self.item_inputs[0]])
        session = self.item.get("one_user")
        if rows <= self.few_up_to and "few_rows" in self.item:
            session = self.item["few_rows"]
        elif session is None:
            session, feeds["user_index"] = self.item["any"], np.zeros(rows, np.int64)
        return dict(zip(self.outputs, session.run(self.outputs, feeds), strict=True))


def _session(path: str, settings: Mapping[str, Any]) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    disabled = None
    for key, value in settings.items():
        if key == "graph_optimization_level":
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        elif key in ("intra_op_num_threads", "inter_op_num_threads"):
            setattr(options, key, value)
        elif key == "disabled_optimizers":
            disabled = str(value).split()
        else:
            options.add_session_config_entry(key, str(value))
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"], disabled_optimizers=disabled)
