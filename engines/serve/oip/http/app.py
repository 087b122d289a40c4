"""The HTTP side of the Open Inference Protocol, with the metrics, the status and the page beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from engines.serve.errors import NotReady
from engines.serve.oip.http.infer import HttpInfer, send_error
from engines.serve.oip.metadata import EXTENSIONS, SERVER_NAME, model_config, model_metadata, server_version
from engines.serve.oip.refusals import refusal
from engines.serve.oip.signature import Signature, Signatures
from engines.serve.running.context import ServerContext
from engines.serve.running.status import status
from graphs.base.errors import UgsepError

__all__ = ["make_app"]

_MODELS = "/v2/models/"


def make_app(context: ServerContext, signatures: Signatures, more: Sequence[BaseRoute] = ()) -> ASGIApp:
    """Return the application; ``more`` are the routes beside the protocol's."""
    infer = HttpInfer(context, signatures)
    others = Starlette(routes=[*_routes(context, signatures), *more], exception_handlers=_handlers())

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        # Inference skips the router: it would cost more than the rest of the HTTP side.
        target = _infer_target(scope["path"])
        if target is None:
            await others(scope, receive, send)
        elif scope["method"] != "POST":
            await _wrong_method(scope["method"], {"allow": "POST"})(scope, receive, send)
        else:
            try:
                await infer(scope, receive, send, *target)
            except Exception as error:
                context.log.bug(error)
                await send_error(error, send)

    return app


def _infer_target(path: str) -> tuple[str, str] | None:
    """Return the model and version ('' for any) of an inference URL, or None for another URL."""
    if not (path.startswith(_MODELS) and path.endswith("/infer")):
        return None
    match path[len(_MODELS) :].split("/"):
        case [str(model), "infer"]:
            return model, ""
        case [str(model), "versions", str(version), "infer"]:
            return model, version
    return None


def _routes(context: ServerContext, signatures: Signatures) -> list[BaseRoute]:
    def described(make: Callable[[Signature, bool], Any]) -> Callable[[Request], Any]:
        async def endpoint(request: Request) -> Response:
            signature = signatures.of(context.slot.current())
            params = request.path_params
            return _json(make(signature, signature.is_user_model(params["model"], params.get("version", ""))))

        return endpoint

    def model_ready(signature: Signature, users_only: bool) -> Any:
        if not context.lifecycle.ready:
            raise NotReady(f"the server is {context.lifecycle.state}")
        return {"name": signature.served.user_model if users_only else signature.served.name, "ready": True}

    async def server(request: Request) -> Response:
        return _json({"name": SERVER_NAME, "version": server_version(), "extensions": EXTENSIONS})

    async def live(request: Request) -> Response:
        return _json({"live": True})

    async def ready(request: Request) -> Response:
        state = context.lifecycle.ready
        return _json({"ready": state}, 200 if state else 503)

    # Not coroutines: they run in a thread of their own, because they take milliseconds.
    def metrics(request: Request) -> Response:
        body, content_type = context.metrics.render()
        return Response(body, headers={"content-type": content_type})

    def show_status(request: Request) -> Response:
        return _json(status(context), headers={"cache-control": "no-store"})

    model = described(model_metadata)
    routes: list[BaseRoute] = [
        Route("/v2", server),
        Route("/v2/health/live", live),
        Route("/v2/health/ready", ready),
        Route("/metrics", metrics),
        Route("/status", show_status),
    ]
    for prefix in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
        routes += [
            Route(prefix, model),
            Route(f"{prefix}/ready", described(model_ready)),
            Route(f"{prefix}/config", described(model_config)),
        ]
    return routes


def _handlers() -> dict[Any, Any]:
    async def refuse(request: Request, error: Exception) -> Response:
        refused = refusal(error)
        return _json({"error": refused.line}, refused.http)

    async def not_found(request: Request, error: Exception) -> Response:
        return _json({"error": "no such page; the protocol is under /v2, and GET /v2 describes the server"}, 404)

    async def bug(request: Request, error: Exception) -> Response:
        return _json({"error": "internal error"}, 500)  # the exception goes on to the log

    async def wrong_method(request: Request, error: Exception) -> Response:
        return _wrong_method(request.method, getattr(error, "headers", None))

    return {UgsepError: refuse, 404: not_found, 405: wrong_method, Exception: bug}


def _wrong_method(method: str, headers: dict[str, str] | None) -> Response:
    return _json({"error": f"method {method:.20} is not for this page"}, 405, headers)


def _json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(value), status, headers, media_type="application/json")
