"""The routes of the page: its files, and the requests that it offers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from engines.serve.core.served_bundle import ServedBundle
from engines.serve.errors import NotReady
from engines.serve.page.requests_to_try import Offers, infer_body, listing
from engines.serve.settings import ServeSettings

__all__ = ["PageContext", "page_routes"]

STATIC = Path(__file__).parent / "static"
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
#: Nothing but the server's own files is loaded, and no text can become markup or code, whatever a bundle names.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",  # kept, but asked for again: a 304 costs less than a page of another version
}


class Slot(Protocol):
    """Where the bundle that serves is found."""

    def current(self) -> ServedBundle:
        """Return it.

        Raises:
            NotReady: none is loaded.
        """
        ...


class PageContext(Protocol):
    """What the page needs of the server."""

    @property
    def settings(self) -> ServeSettings:
        """The server's settings, of which the page reads ``examples``."""
        ...

    @property
    def slot(self) -> Slot:
        """The bundle that serves."""
        ...


def page_routes(context: PageContext) -> list[Route]:
    """Return the routes of ``/``, ``/page/*``, ``/examples.json`` and ``/examples/N.json``.

    Raises:
        UgsepError: the examples of the settings are missing or malformed, or do not fit the bundle that serves.
    """
    offers = Offers(context.settings.examples)
    with suppress(NotReady):  # then examples that do not fit are reported on the page
        offers.check(context.slot.current())
    files = {path.name: (path.read_bytes(), TYPES[path.suffix]) for path in sorted(STATIC.iterdir())}

    def page(request: Request) -> Response:
        return _cached(request, *files["index.html"])

    def file(request: Request) -> Response:
        found = files.get(request.path_params["name"])
        if found is None:
            return _error(404, "the page has no such file")
        return _cached(request, *found)

    def examples(request: Request) -> Response:
        return _of_current(request, context, lambda served: listing(served, offers.of(served)))

    def example(request: Request) -> Response:
        number = request.path_params["number"]

        def body(served: ServedBundle) -> Mapping[str, Any] | None:
            requests = offers.of(served).fixtures.requests
            # Compared as text: Python reads no number of more than 4,300 digits, and a router that tries answers 500.
            return next((infer_body(one) for index, one in enumerate(requests) if number == str(index)), None)

        return _of_current(request, context, body)

    return [
        Route("/", page),
        Route("/page/{name}", file),
        Route("/examples.json", examples),
        Route("/examples/{number}.json", example),
    ]


def _of_current(
    request: Request, context: PageContext, content: Callable[[ServedBundle], Mapping[str, Any] | None]
) -> Response:
    try:
        served = context.slot.current()
    except NotReady as error:
        return _error(503, str(error))
    found = content(served)
    if found is None:
        return _error(404, "no such example")
    return _cached(request, json.dumps(found, separators=(",", ":"), allow_nan=False).encode(), "application/json")


def _cached(request: Request, content: bytes, media_type: str) -> Response:
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {**HEADERS, "etag": tag}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=media_type, headers=headers)


def _error(code: int, message: str) -> Response:
    return Response(json.dumps({"error": message}), code, HEADERS, "application/json")
