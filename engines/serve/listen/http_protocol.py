"""uvicorn's HTTP protocol with bounds on what a slow or endless client may hold."""

from __future__ import annotations

import asyncio
import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from engines.serve.listen.direct_response import Admit, DirectResponse, Exchange
from engines.serve.listen.plain_request import Arriving, plain_head
from engines.serve.listen.request_head import MALFORMED, Fault, fault_of, refused, with_path

__all__ = ["bounded_protocol"]

MOST_HEADER_BYTES = 64 << 10  # of a request's line, headers and trailers
_FRAME = 3  # bytes of a header beside its name and its value, at least: the colon and the end of the line
_TOO_LARGE: Fault = (400, "the request's headers are too large; send fewer")
FRESH = 0.25  # seconds for a new connection's first request when the server stops
GRACE = 1.0  # seconds after which the connection is cut although it should have been answered


def bounded_protocol(patience: float, admit: Admit = lambda url, headers: None) -> type[asyncio.Protocol]:
    """Return a protocol class for uvicorn that cuts a connection it waits for longer than ``patience`` seconds.

    ``admit`` sees the POST requests that can be answered without the application: HTTP/1.1, on a connection that
    lives on, with no unanswered request before them, and no 'Expect: 100-continue'.

    Bounded are the time until a request is there whole, from its first byte or, for the first one, from the
    connection; the time that a response waits for its reader; and the bytes of line, headers and trailers. uvicorn
    itself only bounds the time between two requests.

    An offer to go on in another protocol (Upgrade) is ignored, as HTTP allows: the request is answered as it is.
    """

    class Bounded(HttpToolsProtocol):
        cycle: Any  # uvicorn's, of the last request, or its DirectResponse

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._cut: asyncio.TimerHandle | None = None
            self._late: asyncio.TimerHandle | None = None  # until the body of a direct request is there
            self._whole = True  # no request is partly received
            self._header_bytes = 0
            self._fault: Fault | None = None  # of the request whose headers are there
            self._headed = False  # they are: what the parser reports as headers now are trailers
            self._refused = False  # the request whose body arrives
            self._refused_at = 0.0  # when the last such request had arrived
            self._ends = False  # the connection does, with this request
            self._handled = False  # a request, in this call of data_received, without the application
            self._idle_bytes = 0  # received since the parser last got on: httptools keeps a header until it is whole
            self._direct: DirectResponse | None = None  # the last one of this connection
            self._body: list[bytes] | None = None  # of a direct request, while it arrives
            self._arriving: Arriving | None = None  # a request that the parser does not see, while it arrives

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._descriptor = int(transport.get_extra_info("socket").fileno())
            self._arm()

        def connection_lost(self, exc: Exception | None) -> None:
            self._disarm()
            self._lose_direct()
            super().connection_lost(exc)
            self._unset_keepalive_if_required()

        def data_received(self, data: bytes) -> None:
            if self._arriving is not None or self._is_plain():
                data = self._read_plain(data)
                if not data:
                    return
            self._unset_keepalive_if_required()
            self._handled = False
            self._parse(data)
            if self.parser is None or self.transport.is_closing():
                return
            self._watch()

        def _watch(self) -> None:
            """Bound the time until the rest of a request is there."""
            if self._whole and (self._handled or not self._answered()):
                self._disarm()  # all of it was handed on, the client is not to blame for what follows
            elif self._cut is None:
                self._arm()
            if self._body is not None and self._late is None:
                self._late = self.loop.call_later(patience, self._too_slow)

        def _is_plain(self) -> bool:
            """Return whether a request may begin here that the parser need not see: it is between two, too."""
            cycle = self.cycle
            direct = cycle is None or isinstance(cycle, DirectResponse)  # so the last one left the connection open
            return (
                direct and self._whole and not self.pipeline and not self.transport.is_closing() and self._answered()
            )

        def _read_plain(self, data: bytes) -> bytes:
            """Read a plain request, or more of it, and return what is left for the parser."""
            arriving = self._arriving
            if arriving is None:
                head = plain_head(data)
                admitted = None if head is None else admit(head.url, head.headers)
                if head is None or admitted is None:
                    return data
                self._arriving = arriving = Arriving(head)
                self._whole = False
                self._take(admitted, arriving.parts)
            rest = arriving.take(data, self._body is not None)
            if arriving.left:
                self._watch()
                return b""
            self._arriving = None
            self._disarm()
            self._hand_on(arriving.at)
            return rest

        def _parse(self, data: bytes) -> None:
            while data:
                room = MOST_HEADER_BYTES - self._idle_bytes
                if room <= 0:
                    self._refuse(_TOO_LARGE)
                    return
                # No more than that at once: it may be headers that the parser counts only when they are there whole.
                piece, data = data[:room], data[room:]
                self._idle_bytes += len(piece)
                try:
                    self.parser.feed_data(piece)
                except httptools.HttpParserUpgrade as upgrade:
                    if self.parser.get_method() == b"CONNECT":
                        self._refuse((400, "CONNECT is for proxies; send the request itself"))
                        return
                    # The parser takes what follows for the other protocol, the body included, and is of no more use.
                    data = self._head_without_upgrade() + piece[upgrade.args[0] :] + data
                    self.parser = httptools.HttpRequestParser(self)
                    self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn has it
                except httptools.HttpParserError:
                    self._refuse(self._fault or MALFORMED)
                    return

        def _head_without_upgrade(self) -> bytes:
            lines = [b"%b: %b\r\n" % header for header in self.headers if header[0] != b"upgrade"]
            version = self.parser.get_http_version().encode()
            return b"%b %b HTTP/%b\r\n%b\r\n" % (self.parser.get_method(), self.url, version, b"".join(lines))

        def on_message_begin(self) -> None:
            self._whole, self._headed, self._header_bytes = False, False, 0
            super().on_message_begin()

        def on_url(self, url: bytes) -> None:
            self._count(len(url))
            super().on_url(url)

        def on_header(self, name: bytes, value: bytes) -> None:
            self._count(len(name) + len(value) + _FRAME)
            if not self._headed:  # a trailer is dropped: it must not pass for a header (RFC 9110, 6.5.1)
                super().on_header(name, value)

        def on_headers_complete(self) -> None:
            self._idle_bytes = 0
            if self.parser.should_upgrade():
                return
            self._headed = True
            self._fault = fault_of(self.parser.get_http_version(), self.headers)
            if self._fault is not None:
                raise ValueError(self._fault[1])  # the parser stops and reports an error of a callback
            self.url = with_path(self.url)
            admitted = admit(self.url, self.headers) if self._is_next() else None
            if admitted is None:
                with self._response_lock():
                    super().on_headers_complete()
                    if self.pipeline and self._direct is not None:
                        self._direct.leave_to_loop()
            else:
                self._take(admitted, [])

        def _take(self, admitted: Exchange | bytes, body: list[bytes]) -> None:
            """Begin with a request that skips the application."""
            if isinstance(admitted, bytes):
                self._refused = True
                self.transport.write(admitted)
            else:
                self._body = body
                self.cycle = self._direct = DirectResponse(
                    admitted, self.loop, self.transport, self.on_response_complete
                )

        def on_body(self, body: bytes) -> None:
            self._idle_bytes = 0
            if self._body is not None:
                self._body.append(body)
            elif not self._refused:
                super().on_body(body)

        def on_message_complete(self) -> None:
            if self.parser.should_upgrade():
                return
            if not self._hand_on():
                super().on_message_complete()

        def _hand_on(self, at: int = 0) -> bool:
            """End with a request that is there whole, its body from ``at``; return False if it skips nothing."""
            self._whole, self._idle_bytes = True, 0
            if self._body is not None and self._direct is not None:
                parts, self._body = self._body, None
                self._cancel_late()
                self._handled = True
                self._await_next(self.timeout_keep_alive)
                # The last step: it wakes a worker, which waits for the interpreter's lock from then on.
                self._direct.start(parts[0] if len(parts) == 1 else b"".join(parts), at, self._descriptor)
                return True
            if self._refused:
                self._refused, self._handled = False, True
                if self._ends:
                    self.transport.close()
                else:
                    self._refused_at = time.monotonic()
                    self._await_next(self.timeout_keep_alive)
                    if self.flow.write_paused:
                        self._arm()  # until the client has read most of it
                return True
            return False

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self._whole and not self.pipeline:
                self._disarm()  # uvicorn's limit for idle connections takes over
            if self.flow.write_paused and not self.transport.is_closing():
                self._arm()  # until the client has read most of it

        def _refuse(self, fault: Fault) -> None:
            """Answer what cannot be read as a request, and close: where the next one begins is unknown."""
            self._lose_direct()
            self.transport.write(refused(fault))
            self.transport.close()

        def pause_writing(self) -> None:
            super().pause_writing()
            if self._cut is None:
                self._arm()

        def resume_writing(self) -> None:
            super().resume_writing()
            if self._whole:
                self._disarm()

        def timeout_keep_alive_handler(self) -> None:
            left = self._idle_seconds_left()
            if left > 0:
                self.timeout_keep_alive_task = None
                self._await_next(left)
                return
            super().timeout_keep_alive_handler()  # closes after the rest is written, which a client may never read
            self._arm()

        def shutdown(self) -> None:
            if self.cycle is None and not self.transport.is_closing():
                # A client that has just connected is about to send; closing now would reset it. It gets an answer.
                self._disarm()
                self._cut = self.loop.call_later(FRESH, self._close_unless_asked)
            else:
                with self._response_lock():
                    super().shutdown()

        def _close_unless_asked(self) -> None:
            self._cut = None
            if self.cycle is None:
                self.transport.close()

        def _is_next(self) -> bool:
            """Return whether a POST request could be answered now, on a connection that lives on."""
            parser = self.parser
            plain = (
                parser.get_method() == b"POST" and parser.get_http_version() == "1.1" and parser.should_keep_alive()
            )
            return plain and not self.expect_100_continue and not self.pipeline and self._answered()

        def _answered(self) -> bool:
            """Return whether every request that was received whole has its response written."""
            cycle = self.cycle
            if isinstance(cycle, DirectResponse):
                return cycle.complete()
            return cycle is None or bool(cycle.response_complete)

        def _response_lock(self) -> AbstractContextManager[Any]:
            """Keep other threads from writing to this connection."""
            return self._direct.lock if self._direct is not None else nullcontext()

        def _lose_direct(self) -> None:
            self._cancel_late()
            self._body = None
            if self._direct is not None:
                self._direct.lose()
                if self.cycle is self._direct:
                    self.cycle = None
                self._direct = None

        def _too_slow(self) -> None:
            """Answer without the body; the rest of it is dropped as it arrives, until the connection is cut."""
            direct = self._direct
            self._late = None
            if direct is not None and self._body is not None:
                self._refused = self._ends = True
                self.transport.write(direct.too_slow())
                self._lose_direct()

        def _cancel_late(self) -> None:
            if self._late is not None:
                self._late.cancel()
                self._late = None

        def _await_next(self, seconds: float) -> None:
            """Close the connection if nothing arrives for so long; a running timer finds out by itself."""
            if self.timeout_keep_alive_task is None:
                self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

        def _idle_seconds_left(self) -> float:
            """Return how much longer to wait for a request: the timer runs on over requests that need no parser."""
            if not self._whole or not self._answered():
                return self.timeout_keep_alive
            last = self._refused_at
            if isinstance(self.cycle, DirectResponse):
                last = max(last, self.cycle.answered_at)
            return last + self.timeout_keep_alive - time.monotonic()

        def _count(self, size: int) -> None:
            self._header_bytes += size
            if self._header_bytes > MOST_HEADER_BYTES:
                self._fault = _TOO_LARGE
                raise ValueError(_TOO_LARGE[1])  # the parser stops and reports an error of a callback

        def _arm(self) -> None:
            self._disarm()
            self._cut = self.loop.call_later(patience + GRACE, self.transport.abort)

        def _disarm(self) -> None:
            if self._cut is not None:
                self._cut.cancel()
                self._cut = None

    return Bounded
