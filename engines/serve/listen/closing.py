"""When a response has to say that its connection is closed after it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

__all__ = ["App", "close_unasked", "close_when"]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


def close_when(draining: Callable[[], bool], app: App) -> App:
    """Let responses say 'connection: close' while ``draining()``, so that clients move to another replica in time.

    A client whose idle connection is closed just as it sends a request cannot know whether it was processed.
    """

    async def wrapped(scope: Message, receive: Receive, send: Send) -> None:
        await app(scope, receive, _closing(send, lambda: True) if draining() else send)

    return wrapped


def close_unasked(app: App) -> App:
    """Let a response say 'connection: close' if the client asked whether to send a body and was not told to.

    The body may follow or not (RFC 9110, 10.1.1): what arrives next cannot be told from another request.
    """

    async def wrapped(scope: Message, receive: Receive, send: Send) -> None:
        if not any(name == b"expect" and value.lower() == b"100-continue" for name, value in scope["headers"]):
            await app(scope, receive, send)
            return
        asked = False

        async def ask() -> Message:
            nonlocal asked
            asked = True
            return await receive()

        await app(scope, ask, _closing(send, lambda: not asked))

    return wrapped


def _closing(send: Send, closes: Callable[[], bool]) -> Send:
    """Return ``send`` that closes the connection if ``closes()`` when the response starts."""

    async def wrapped(message: Message) -> None:
        if message["type"] == "http.response.start" and closes():
            others = [header for header in message.get("headers", ()) if header[0].lower() != b"connection"]
            message["headers"] = [*others, (b"connection", b"close")]
        await send(message)

    return wrapped
