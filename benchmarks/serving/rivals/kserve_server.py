"""KServe's own server in front of the engines, in its environment: kserve_server.py FOLDER NAME HTTP GRPC."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import kserve  # type: ignore[import-not-found]  # in its own environment only


class Ranked(kserve.Model):  # type: ignore[misc]
    """Both graphs as one model."""

    def __init__(self, name: str, folder: Path) -> None:
        super().__init__(name)
        sys.path.insert(0, str(folder))
        from plain_engines import PlainEngines  # type: ignore[import-not-found]

        self.engines = PlainEngines(folder / "spec.json")
        self.ready = True

    def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
        """Answer one request."""
        del headers, response_headers
        scores = self.engines.score({tensor.name: tensor.as_numpy() for tensor in payload.inputs})
        outputs = []
        for name, value in scores.items():
            output = kserve.InferOutput(name, list(value.shape), "FP32")
            output.set_data_from_numpy(value, binary_data=True)
            outputs.append(output)
        return kserve.InferResponse(payload.id or "", self.name, outputs)


if __name__ == "__main__":
    folder, name, http_port, grpc_port = sys.argv[1:]
    server = kserve.ModelServer(http_port=int(http_port), grpc_port=int(grpc_port), enable_docs_url=False, workers=1)
    server.start([Ranked(name, Path(folder))])
