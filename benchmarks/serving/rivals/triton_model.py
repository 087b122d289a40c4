"""The model of Triton's Python backend: one file that runs both graphs, the user graph or the item graph."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

# Triton may start Python isolated, which ignores PYTHONPATH; NumPy must come from there.
sys.path.extend(os.environ["PYTHONPATH"].split(os.pathsep))

import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]  # inside Triton only


class TritonPythonModel:
    """Which graphs it runs is the parameter ``part`` of ``config.pbtxt``: ``both``, ``user`` or ``item``."""

    def initialize(self, args: dict[str, Any]) -> None:
        """Load the engines."""
        import json

        config = json.loads(args["model_config"])
        folder = config["parameters"]["engines"]["string_value"]
        sys.path.insert(0, folder)
        from plain_engines import PlainEngines  # type: ignore[import-not-found]

        self.part = config["parameters"]["part"]["string_value"]
        self.engines = PlainEngines(Path(folder) / "spec.json")
        self.outputs = [output["name"] for output in config["output"]]

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request on its own."""
        answers = []
        for request in requests:
            given = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
            if self.part == "both":
                found = self.engines.score(given)
            elif self.part == "user":
                found = self.engines.user_state(given)
            else:
                found = self.engines.item_scores(given, {name: given[name] for name in self.engines.states})
            tensors = [pb_utils.Tensor(name, found[name]) for name in self.outputs]
            answers.append(pb_utils.InferenceResponse(output_tensors=tensors))
        return answers
