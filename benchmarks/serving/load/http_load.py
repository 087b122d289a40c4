"""An HTTP load generator: keep-alive connections, prebuilt requests, every one of them accounted for.

It costs some tens of microseconds a request, so that one core drives a server on another.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from benchmarks.serving.load.pacing import Pacer
from benchmarks.serving.load.pool import Entry, Pool
from benchmarks.serving.load.tally import BROKEN, UNANSWERED, Tally

_LENGTH = b"\r\ncontent-length:"


@dataclass(frozen=True)
class Address:
    """Where a server listens."""

    host: str
    port: int


@dataclass(frozen=True)
class Ticket:
    """One request under way: when it was due, and when it was written."""

    entry: Entry
    due: float
    sent: float


class _Connection(asyncio.Protocol):
    """One keep-alive connection with at most one request under way."""

    def __init__(self, load: _Load) -> None:
        self.load, self.ticket = load, cast("Ticket | None", None)
        self.buffer = bytearray()
        self.needed = 0  # bytes of the whole answer, 0 while its head is incomplete
        self.body_at = 0
        self.closing = False
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def send(self, entry: Entry, due: float) -> None:
        self.ticket = Ticket(entry, due, time.perf_counter())
        assert self.transport is not None
        self.transport.write(entry.http)

    def data_received(self, data: bytes) -> None:
        buffer = self.buffer
        buffer += data
        if not self.needed:
            end = buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            head = bytes(buffer[:end]).lower()
            at = head.find(_LENGTH)
            length = int(head[at + len(_LENGTH) :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            self.body_at, self.needed = end + 4, end + 4 + length
            self.closing = b"connection: close" in head
        if len(buffer) < self.needed:
            return
        ticket, done = self.ticket, time.perf_counter()
        head, body = bytes(buffer[: self.body_at]), bytes(buffer[self.body_at : self.needed])
        buffer.clear()
        self.needed, self.ticket = 0, None
        if ticket is not None:
            self.load.answered(self, ticket, head, body, done)

    def connection_lost(self, exc: Exception | None) -> None:
        self.load.disconnected(self, exc)


class _Load:
    """The connections of one run, and the requests that wait for one."""

    def __init__(self, address: Address, pool: Pool, connections: int) -> None:
        self.address, self.limit = address, connections
        self.tally = Tally(pool)
        self.waiting: deque[tuple[Entry, float]] = deque()
        self.idle: list[_Connection] = []
        self.opened: set[_Connection] = set()
        self.opening = 0
        self.running = 0
        self.on_idle: Callable[[_Connection], None] | None = None
        self.tasks: set[asyncio.Task[None]] = set()

    def submit(self, entry: Entry, due: float) -> None:
        """Send a request on an idle connection, or queue it and open one more."""
        self.running += 1
        self.tally.planned += 1
        while self.idle:
            connection = self.idle.pop()
            if connection in self.opened:
                connection.send(entry, due)
                return
        self.waiting.append((entry, due))
        if len(self.opened) + self.opening < self.limit:
            self.open_later()

    def open_later(self) -> asyncio.Task[None]:
        """Start to open a connection."""
        self.opening += 1  # now, so that requests due at once do not open one each
        task = asyncio.get_running_loop().create_task(self.open())
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    async def open(self) -> None:
        """Open a connection; the request that waits longest fails if the server refuses it."""
        loop = asyncio.get_running_loop()
        try:
            _, made = await loop.create_connection(lambda: _Connection(self), self.address.host, self.address.port)
        except OSError as error:
            if self.waiting:
                entry, due = self.waiting.popleft()
                self.fail(Ticket(entry, due, time.perf_counter()), error)
            return
        finally:
            self.opening -= 1
        self.opened.add(made)
        self.next(made)

    def next(self, connection: _Connection) -> None:
        """Give a free connection the next request."""
        if self.waiting:
            connection.send(*self.waiting.popleft())
        elif self.on_idle is not None:
            self.on_idle(connection)
        else:
            self.idle.append(connection)

    def answered(self, connection: _Connection, ticket: Ticket, head: bytes, body: bytes, done: float) -> None:
        tally, code = self.tally, int(head[9:12])
        self.running -= 1
        tally.add(code, ticket.due, ticket.sent, done)
        if code == 200:
            tally.check_http(ticket.entry, head, body)
        else:
            if code == 429 and b"retry-after:" not in head.lower():
                tally.no_retry_after += 1
            tally.say(f"{code}: {body[:200].decode('utf-8', 'replace')}")
        if connection.closing:
            self.opened.discard(connection)
            assert connection.transport is not None
            connection.transport.close()
            return
        self.next(connection)

    def disconnected(self, connection: _Connection, error: Exception | None) -> None:
        self.opened.discard(connection)
        ticket, connection.ticket = connection.ticket, None
        if ticket is not None:
            self.fail(ticket, error)
        if self.waiting and not self.opening:
            self.open_later()

    def fail(self, ticket: Ticket, error: Exception | None) -> None:
        self.running -= 1
        self.tally.add(BROKEN, ticket.due, ticket.sent, time.perf_counter())
        self.tally.say(f"connection: {error or 'closed by the server before it answered'}")

    async def finish(self, grace: float) -> Tally:
        """Wait for what is under way, count what never came, and close the connections."""
        until = time.perf_counter() + grace
        while self.running and time.perf_counter() < until:
            await asyncio.sleep(0.005)
        now = time.perf_counter()
        for connection in list(self.opened):
            if connection.ticket is not None:
                self.tally.add(UNANSWERED, connection.ticket.due, connection.ticket.sent, now)
                connection.ticket = None
            assert connection.transport is not None
            connection.transport.abort()
        for _, due in self.waiting:
            self.tally.add(UNANSWERED, due, now, now)
        self.waiting.clear()
        for task in list(self.tasks):
            task.cancel()
        await asyncio.sleep(0)
        return self.tally


async def open_loop(
    address: Address,
    pool: Pool,
    picks: Sequence[int] | NDArray[np.int64],
    arrivals: NDArray[np.float64],
    *,
    connections: int = 256,
    grace: float = 30.0,
    stop: Callable[[], bool] | None = None,
) -> Tally:
    """Send a request at each arrival, whatever became of those before.

    Args:
        address: of the server.
        pool: what to send.
        picks: the index of the request in ``pool`` for each arrival.
        arrivals: seconds from the start.
        connections: the most to open; beyond, requests wait in this process, which counts as latency.
        grace: seconds to wait for answers after the last arrival.
        stop: ends the run early when it returns true.
    """
    load = _Load(address, pool, connections)
    _ = [entry.http for entry in pool.entries]  # made now, not when they are due
    started = time.perf_counter() + 0.01
    with Pacer() as pacer:
        for pick, offset in zip(picks, arrivals, strict=True):
            due = started + float(offset)
            await pacer.until(due)
            load.submit(pool.entries[int(pick)], due)
            if stop is not None and stop():
                break
    return await load.finish(grace)


async def closed_loop(
    address: Address,
    pool: Pool,
    picks: Sequence[int] | NDArray[np.int64],
    seconds: float,
    *,
    connections: int = 1,
    grace: float = 30.0,
) -> Tally:
    """Keep ``connections`` requests under way for some seconds: saturation, or with one the unloaded latency."""
    load = _Load(address, pool, connections)
    _ = [entry.http for entry in pool.entries]  # made now, not when they are due
    until = time.perf_counter() + seconds
    at = 0

    def again(connection: _Connection) -> None:
        nonlocal at
        now = time.perf_counter()
        if now < until:
            entry = pool.entries[int(picks[at % len(picks)])]
            at += 1
            load.running += 1
            load.tally.planned += 1
            connection.send(entry, now)

    load.on_idle = again
    await asyncio.gather(*(load.open_later() for _ in range(connections)))
    while time.perf_counter() < until and load.opened:
        await asyncio.sleep(0.01)
    return await load.finish(grace)


def run(coroutine: Any) -> Any:
    """Run a coroutine on uvloop."""
    import uvloop

    return uvloop.run(coroutine)
