"""The response to a request that skips the application; any thread may write it."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

__all__ = ["Admit", "DirectResponse", "Exchange"]


class Exchange(Protocol):
    """A request that skips the application, once its headers were accepted; called in the event loop's thread."""

    def start(self, data: bytes, at: int, respond: Callable[[bytes], None]) -> None:
        """Take the whole body, ``data`` from ``at``.

        ``respond`` gets the whole response, head included, once, from any thread.
        """
        ...

    def too_slow(self) -> bytes:
        """Return the response to a body that did not arrive in time; the connection is closed after it."""
        ...

    def abandon(self) -> None:
        """Note that the client is gone; what ``respond`` gets from now on is dropped."""
        ...


#: Decides about a POST request by its URL and its headers, in lower case: a whole response, after which the body is
#: dropped as it arrives, an exchange that gets the body, or None to leave the request to the application.
Admit = Callable[[bytes, Sequence[tuple[bytes, bytes]]], Exchange | bytes | None]


class DirectResponse:
    """One response, written by the thread that made it, without waking the event loop if nothing is in the way.

    That saves a switch of threads per request, and is sound for three reasons. The thread writes to a duplicate of
    the connection's descriptor: it can never reach another connection, however early the loop closes its own. The
    duplicate is made in the loop when the transport has nothing left to write, and until the response is complete the
    loop writes to this connection only after taking the lock. What the socket does not take at once, and all that
    concerns the loop (a request that waits behind this one, a connection to be closed), goes through the loop.

    It stands in for uvicorn's cycle of request and response: hence ``response_complete`` and ``keep_alive``, which
    are read and written under the lock. ``answered_at`` is when the response was complete, a time of
    ``time.monotonic()``.
    """

    __slots__ = (
        "_exchange",
        "_fd",
        "_gone",
        "_loop",
        "_transport",
        "_written",
        "answered_at",
        "keep_alive",
        "lock",
        "response_complete",
    )

    def __init__(
        self,
        exchange: Exchange,
        loop: asyncio.AbstractEventLoop,
        transport: asyncio.Transport,
        written: Callable[[], None],
    ) -> None:
        self._exchange, self._loop, self._transport, self._written = exchange, loop, transport, written
        self.lock = threading.Lock()
        self.response_complete, self.keep_alive = False, True
        self.answered_at = 0.0
        self._gone, self._fd = False, -1

    def start(self, data: bytes, at: int, descriptor: int) -> None:
        """Hand on the whole request, its body from ``at``; ``descriptor`` is the connection's."""
        if not self._transport.get_write_buffer_size():
            try:
                self._fd = os.dup(descriptor)
            except OSError:  # too many are open
                self._fd = -1
        self._exchange.start(data, at, self.respond)

    def too_slow(self) -> bytes:
        """Return the response to write instead, because the body is not there in time."""
        with self.lock:
            self._gone = self.response_complete = True
        return closing(self._exchange.too_slow())

    def respond(self, response: bytes) -> None:
        """Write the whole response; from any thread."""
        sent = 0
        with self.lock:
            if self._gone:
                return
            if self._fd >= 0:
                if self.keep_alive:
                    sent = _write(self._fd, response)
                self._close()
                if sent == len(response):
                    self.response_complete, self.answered_at = True, time.monotonic()
                    return
        try:
            self._loop.call_soon_threadsafe(self._write_rest, response, sent)
        except RuntimeError:
            return  # the loop has ended, and with it the connection

    def leave_to_loop(self) -> None:
        """Write the response in the loop, because something waits behind it; the lock is the caller's."""
        self._close()

    def complete(self) -> bool:
        """Return whether the response is written, after waiting for a thread that writes."""
        with self.lock:
            return self.response_complete

    def lose(self) -> None:
        """Drop the response: the connection is lost, or is about to be closed."""
        with self.lock:
            gone, self._gone = self._gone, True
            self._close()
            unanswered = not self.response_complete
            self.response_complete = True
        if unanswered and not gone:
            self._exchange.abandon()

    def _write_rest(self, response: bytes, sent: int) -> None:
        with self.lock:
            if self._gone:
                return
            keep_alive = self.keep_alive
            self.response_complete, self.answered_at = True, time.monotonic()
        if not keep_alive and not sent:
            response = closing(response)
        self._transport.write(response[sent:])
        if not keep_alive:
            self._transport.close()
        self._written()

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def closing(response: bytes) -> bytes:
    """Return a response that says that the connection is closed after it."""
    return response.replace(b"\r\n", b"\r\nconnection: close\r\n", 1)


def _write(descriptor: int, response: bytes) -> int:
    """Return how many bytes a socket took without waiting."""
    try:
        return os.write(descriptor, response)
    except BlockingIOError:
        return 0
    except OSError:
        return len(response)  # the connection is broken; the loop notices by itself
