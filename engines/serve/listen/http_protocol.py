"""uvicorn's HTTP protocol with bounds on what a slow or endless client may hold."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

__all__ = ["bounded_protocol"]

MOST_HEADER_BYTES = 64 << 10  # of a request's line, headers and trailers
FRESH = 0.25  # seconds for a new connection's first request when the server stops
GRACE = 1.0  # seconds after which the connection is cut although the application should have answered


Refuse = Callable[[bytes, Sequence[tuple[bytes, bytes]]], bytes | None]


def bounded_protocol(patience: float, refuse: Refuse = lambda url, headers: None) -> type[asyncio.Protocol]:
    """Return a protocol class for uvicorn that cuts a connection it waits for longer than ``patience`` seconds.

    ``refuse`` sees the URL and the headers of each POST request, in lower case; what it returns is sent as the whole
    response, and the body is dropped as it arrives. That costs a third of a refusal by the application.

    Bounded are the time until a request is there whole, from its first byte or, for the first one, from the
    connection; the time that a response waits for its reader; and the bytes of line, headers and trailers. uvicorn
    itself only bounds the time between two requests.
    """

    class Bounded(HttpToolsProtocol):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._cut: asyncio.TimerHandle | None = None
            self._whole = True  # no request is partly received
            self._header_bytes = 0
            self._refused = False  # the request whose body arrives
            self._answered_early = False  # in this call of data_received
            self._idle_bytes = 0  # received since the parser last got on: httptools keeps a header until it is whole

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._arm()

        def connection_lost(self, exc: Exception | None) -> None:
            self._disarm()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            self._idle_bytes += len(data)
            self._answered_early = False
            super().data_received(data)
            if self.parser is None or self.transport.is_closing():
                return
            if self._idle_bytes > MOST_HEADER_BYTES:
                self.send_400_response("Header too large.")
                return
            answered = self.cycle is None or self.cycle.response_complete
            if self._whole and (self._answered_early or not answered):
                self._disarm()  # the application has all of it, the client is not to blame for what follows
            elif self._cut is None:
                self._arm()

        def on_message_begin(self) -> None:
            self._whole, self._header_bytes = False, 0
            super().on_message_begin()

        def on_url(self, url: bytes) -> None:
            self._count(len(url))
            super().on_url(url)

        def on_header(self, name: bytes, value: bytes) -> None:
            self._count(len(name) + len(value))
            super().on_header(name, value)

        def on_headers_complete(self) -> None:
            self._idle_bytes = 0
            if self._is_next() and (response := refuse(self.url, self.headers)) is not None:
                self._refused = True
                self.transport.write(response)
                return
            super().on_headers_complete()

        def on_body(self, body: bytes) -> None:
            self._idle_bytes = 0
            if not self._refused:
                super().on_body(body)

        def on_message_complete(self) -> None:
            self._whole, self._idle_bytes = True, 0
            if self._refused:
                self._refused, self._answered_early = False, True
                self.on_response_complete()
            else:
                super().on_message_complete()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self._whole and not self.pipeline:
                self._disarm()  # uvicorn's limit for idle connections takes over
            if self.flow.write_paused and not self.transport.is_closing():
                self._arm()  # until the client has read most of it

        def pause_writing(self) -> None:
            super().pause_writing()
            if self._cut is None:
                self._arm()

        def resume_writing(self) -> None:
            super().resume_writing()
            if self._whole:
                self._disarm()

        def timeout_keep_alive_handler(self) -> None:
            super().timeout_keep_alive_handler()  # closes after the rest is written, which a client may never read
            self._arm()

        def shutdown(self) -> None:
            if self.cycle is None and not self.transport.is_closing():
                # A client that has just connected is about to send; closing now would reset it. It gets an answer.
                self._disarm()
                self._cut = self.loop.call_later(FRESH, self._close_unless_asked)
            else:
                super().shutdown()

        def _close_unless_asked(self) -> None:
            self._cut = None
            if self.cycle is None:
                self.transport.close()

        def _is_next(self) -> bool:
            """Return whether a POST request could be answered now, on a connection that lives on."""
            unanswered = self.cycle is not None and not self.cycle.response_complete  # pipelined before it
            plain = self.parser.get_http_version() == "1.1" and self.parser.should_keep_alive()
            return plain and not unanswered and not self.expect_100_continue and self.parser.get_method() == b"POST"

        def _count(self, size: int) -> None:
            self._header_bytes += size
            if self._header_bytes > MOST_HEADER_BYTES:
                raise ValueError("header too large")  # the parser reports it as an invalid request: 400, closed

        def _arm(self) -> None:
            self._disarm()
            self._cut = self.loop.call_later(patience + GRACE, self.transport.abort)

        def _disarm(self) -> None:
            if self._cut is not None:
                self._cut.cancel()
                self._cut = None

    return Bounded
