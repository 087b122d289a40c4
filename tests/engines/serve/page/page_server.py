"""A server of the page alone: a real bundle behind a minimal infer route, and whatever status a test wants."""

from __future__ import annotations

import copy
import json
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from engines.bundle.fixtures import read_fixtures
from engines.bundle.manifest import read_manifest
from engines.serve.core.model_slot import ModelSlot
from engines.serve.core.served_bundle import ServedBundle
from engines.serve.page.routes import page_routes
from engines.serve.ranker import Ranker
from engines.serve.settings import ServeSettings

DTYPES = {"INT64": np.int64, "FP32": np.float32}


@dataclass
class PageServer:
    """What a test changes: the status, and how requests fail (a status code, 0 for not)."""

    settings: ServeSettings
    slot: ModelSlot
    status: dict[str, Any]
    refuse: int = 0
    second_task: str = ""  # one more output of this name, with the negated logits
    sent: list[dict[str, Any]] = field(default_factory=list)

    def infer(self, request: Request, body: dict[str, Any]) -> Response:
        if self.refuse:
            return JSONResponse({"error": "the queue is full"}, self.refuse, {"retry-after": "1"})
        served, ranker = self.slot.current(), self.slot.current().ranker
        given = {t["name"]: np.array(t["data"], DTYPES[t["datatype"]]).reshape(t["shape"]) for t in body["inputs"]}
        self.sent.append(given)
        index = given.pop("user_index", None)
        user = {s.name: given.pop(s.name) for s in ranker.user_inputs}
        before, begun = ranker.cache_info().misses, time.perf_counter()
        scores = ranker.score(user, given) if index is None else ranker.score_users(user, given, index)
        micros = int(1e6 * (time.perf_counter() - begun))
        if self.second_task:
            scores[self.second_task] = -scores["like"]
        cached = ranker.cache_info().misses == before and index is None
        answer = {
            "model_name": served.name,
            "model_version": served.version,
            "parameters": {
                "user_cached": cached,
                "batch_users": 1,
                "queue_us": 20,
                "user_us": 0 if cached else micros // 3,
                "item_us": micros if cached else micros - micros // 3,
            },
            "outputs": [
                {"name": name, "datatype": "FP32", "shape": [len(v)], "data": v.tolist()}
                for name, v in scores.items()
            ],
        }
        return JSONResponse(answer)

    def app(self) -> Starlette:
        async def status(_: Request) -> Response:
            return JSONResponse(self.status)

        async def infer(request: Request) -> Response:
            return self.infer(request, await request.json())

        routes = [Route("/status", status), Route("/v2/models/{name:path}/infer", infer, methods=["POST"])]
        return Starlette(routes=[*routes, *page_routes(self)])


class Running:
    """A Starlette app on a loopback port, a free one for 0, until it is closed."""

    def __init__(self, app: Starlette, port: int = 0) -> None:
        self._server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error", lifespan="off"))
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        until = time.monotonic() + 10
        while not self._server.started:
            assert time.monotonic() < until
            time.sleep(0.01)
        self.port = int(self._server.servers[0].sockets[0].getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}/"

    def close(self) -> None:
        self._server.should_exit = True
        self._server.force_exit = True
        self._thread.join(10)


def served(bundle: Path, name: str) -> ServedBundle:
    manifest = read_manifest(bundle)
    return ServedBundle(
        name, manifest.short_digest, bundle, manifest, Ranker.from_bundle(bundle), fixtures=read_fixtures(bundle)
    )


def page_server(bundle: Path, examples: Path | None = None, name: str = "tiny", **status: Any) -> PageServer:
    slot = ModelSlot()
    slot.switch(served(bundle, name))
    made = copy.deepcopy(STATUS)
    made["model"] |= {"name": name, "version": slot.current().version}
    made |= status
    return PageServer(ServeSettings(bundle=bundle, examples=examples), slot, made)


STATUS: dict[str, Any] = json.loads((Path(__file__).parent / "status.json").read_text())
