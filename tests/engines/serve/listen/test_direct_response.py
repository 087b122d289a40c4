"""Requests that skip the application, on a real listener: every answer whole, in order, and to its own caller."""

from __future__ import annotations

import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from engines.serve.listen import http_listener
from engines.serve.listen.direct_response import Exchange
from engines.serve.listen.http_listener import HttpListener, bind
from engines.serve.listen.http_protocol import GRACE
from tests.engines.serve.listen.connections import read_body, receive_exactly, receive_until

PATIENCE = 0.4
SOON = PATIENCE + GRACE + 10.0
BIG = 8 << 20  # more than the buffers of a loopback connection hold
LATE = b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 4\r\n\r\nlate"


async def app(scope, receive, send) -> None:
    """Answer '/app' like the direct way, so that both can be mixed on a connection."""
    body = await read_body(receive)
    if body is None:
        return
    made = b"app:" + body
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(made))]})
    await send({"type": "http.response.body", "body": made})


def response(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


def post(body: bytes, path: bytes = b"/direct", more: bytes = b"") -> bytes:
    return b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n%b\r\n%b" % (path, len(body), more, body)


class Worker:
    """Answers what is admitted in a thread of its own: 'direct:' and the body, or a big answer to 'big'."""

    def __init__(self) -> None:
        self.jobs: queue.SimpleQueue[tuple[bytes, Callable[[bytes], None]] | None] = queue.SimpleQueue()
        self.started = self.abandoned = 0
        self.free = threading.Event()  # cleared: the worker is busy
        self.free.set()
        self.thread = threading.Thread(target=self.work)
        self.thread.start()

    def work(self) -> None:
        while (job := self.jobs.get()) is not None:
            assert self.free.wait(SOON)
            body, respond = job
            respond(response(b"z" * BIG if body == b"big" else b"direct:" + body))

    def admit(self, url: bytes, headers: object) -> Exchange | None:
        return Call(self) if url == b"/direct" else None


class Call:
    def __init__(self, worker: Worker) -> None:
        self.worker = worker

    def start(self, data: bytes, at: int, respond: Callable[[bytes], None]) -> None:
        self.worker.started += 1
        self.worker.jobs.put((data[at:], respond))

    def too_slow(self) -> bytes:
        return LATE

    def abandon(self) -> None:
        self.worker.abandoned += 1


@pytest.fixture
def worker() -> Iterator[Worker]:
    made = Worker()
    yield made
    made.free.set()
    made.jobs.put(None)
    made.thread.join(SOON)


@pytest.fixture
def listener(worker: Worker) -> Iterator[HttpListener]:
    made = HttpListener(app, bind("127.0.0.1", 0), PATIENCE, worker.admit)
    made.start()
    yield made
    worker.free.set()
    assert made.close(SOON)


@pytest.fixture
def connect(listener: HttpListener) -> Iterator[Callable[[], socket.socket]]:
    with ExitStack() as opened:

        def one() -> socket.socket:
            made = opened.enter_context(socket.create_connection(("127.0.0.1", listener.port)))
            made.settimeout(SOON)
            return made

        yield one


def until_closed(connection: socket.socket) -> bytes:
    got = bytearray()
    try:
        while chunk := connection.recv(1 << 16):
            got += chunk
    except ConnectionResetError:
        return bytes(got)
    return bytes(got)


def expect(connection: socket.socket, *bodies: bytes) -> None:
    wanted = b"".join(map(response, bodies))
    assert receive_exactly(connection, len(wanted)) == wanted


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_requests_of_a_connection_are_answered_one_after_the_other(connect) -> None:
    connection = connect()
    for number in range(50):
        body = b"%d" % number
        way = b"/app" if number % 3 == 2 else b"/direct"
        connection.sendall(post(body, way))
        expect(connection, way[1:] + b":" + body)


def test_pipelined_requests_are_answered_in_order(worker: Worker, connect) -> None:
    for held in (False, True):
        connection = connect()
        if held:
            worker.free.clear()
        ways = [b"direct", b"app", b"direct", b"direct", b"app"]
        connection.sendall(b"".join(post(b"%d" % n, b"/" + way) for n, way in enumerate(ways)))
        if held:
            wait_for(lambda: worker.started > 0)
            time.sleep(0.05)
            worker.free.set()
        head = receive_exactly(connection, len(response(b"direct:0")))
        assert head == response(b"direct:0")
        # Behind a request that runs, the application answers.
        rest = receive_until(connection, lambda got: got.count(b"\r\n\r\n") >= 4 and got.endswith(b"app:4"))
        assert [part.split(b"HTTP")[0][-1:] for part in rest.split(b"\r\n\r\n")[1:]] == [b"1", b"2", b"3", b"4"]
        connection.sendall(post(b"after"))
        expect(connection, b"direct:after")


def test_a_body_in_pieces_is_handed_on_whole(connect) -> None:
    connection = connect()
    body = os.urandom(200_000)
    sent = post(body)
    for start in range(0, len(sent), 30_011):
        connection.sendall(sent[start : start + 30_011])
        time.sleep(0.002)
    expect(connection, b"direct:" + body)


def test_an_answer_that_the_socket_does_not_take_at_once_is_whole(connect) -> None:
    connection = connect()
    connection.sendall(post(b"big"))
    time.sleep(0.2)
    expect(connection, b"z" * BIG)
    connection.sendall(post(b"after"))
    expect(connection, b"direct:after")


def test_a_client_that_does_not_read_its_answer_is_cut(listener: HttpListener, connect) -> None:
    connection = connect()
    connection.sendall(post(b"big"))
    connection.recv(1)
    wait_for(lambda: listener.connections == 0)


@pytest.mark.parametrize("answered", [True, False])
def test_a_caller_that_hangs_up_abandons_its_request(worker: Worker, listener, connect, answered: bool) -> None:
    connection = connect()
    if not answered:
        worker.free.clear()
    connection.sendall(post(b"a"))
    if answered:
        expect(connection, b"direct:a")
    wait_for(lambda: worker.started == 1)
    connection.close()
    wait_for(lambda: listener.connections == 0)
    assert worker.abandoned == (0 if answered else 1)
    worker.free.set()
    other = connect()
    other.sendall(post(b"b"))
    expect(other, b"direct:b")


def test_an_answer_never_reaches_the_next_connection(worker: Worker, listener, connect) -> None:
    """The system gives the descriptor of a closed connection to the next one."""
    for number in range(30):
        gone = connect()
        worker.free.clear()
        gone.sendall(post(b"for another"))
        wait_for(lambda n=number: worker.started == 2 * n + 1)
        gone.close()
        wait_for(lambda: listener.connections == 0)
        fresh = connect()
        fresh.sendall(post(b"%d" % number))
        worker.free.set()
        expect(fresh, b"direct:%d" % number)
        fresh.close()
        wait_for(lambda: listener.connections == 0)


def test_no_descriptor_is_left(worker: Worker, listener, connect) -> None:
    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = descriptors()
    for body in (b"a", b"big", b"b"):
        with closing(connect()) as connection:
            connection.sendall(post(body) + post(b"behind"))
            connection.recv(1)
    worker.free.clear()
    with closing(connect()) as connection:
        connection.sendall(post(b"c"))
        wait_for(lambda: worker.started > 2)
    wait_for(lambda: listener.connections == 0)
    worker.free.set()
    wait_for(lambda: descriptors() <= before)


@pytest.mark.parametrize("first", [False, True])
def test_a_body_that_comes_too_slowly_is_refused_and_the_connection_cut(connect, first: bool) -> None:
    connection = connect()
    if not first:
        connection.sendall(post(b"a"))
        expect(connection, b"direct:a")
    began = time.monotonic()
    connection.sendall(post(b"x" * 100)[:-50])
    got = until_closed(connection)
    assert got == LATE.replace(b"\r\n", b"\r\nconnection: close\r\n", 1)
    assert PATIENCE * 0.9 < time.monotonic() - began < SOON


def test_a_refused_body_that_arrives_after_all_ends_the_connection(connect) -> None:
    connection = connect()
    connection.sendall(post(b"x" * 100)[:-50])
    assert connection.recv(1 << 16).endswith(b"late")
    connection.sendall(b"x" * 50)
    began = time.monotonic()
    assert until_closed(connection) == b""
    assert time.monotonic() - began < GRACE / 2


def test_a_connection_stays_open_between_two_requests(connect) -> None:
    connection = connect()
    for body in (b"a", b"b"):
        connection.sendall(post(body))
        expect(connection, b"direct:" + body)
        time.sleep(PATIENCE + GRACE + 0.3)


@pytest.mark.parametrize("big", [False, True], ids=["written by the worker", "written by the loop"])
def test_a_connection_is_kept_as_long_after_an_answer_that_took_long(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, big: bool
) -> None:
    keep = 2  # seconds
    monkeypatch.setattr(http_listener, "KEEP_ALIVE", keep)
    listener = HttpListener(app, bind("127.0.0.1", 0), PATIENCE, worker.admit)
    listener.start()
    with socket.create_connection(("127.0.0.1", listener.port)) as connection:
        connection.settimeout(SOON)
        for body, pause in ((b"big" if big else b"a", 0.4 * keep), (b"b", 0.0)):
            worker.free.clear()
            connection.sendall(post(body))
            time.sleep(0.8 * keep)
            answered = time.monotonic()
            worker.free.set()
            expect(connection, b"z" * BIG if body == b"big" else b"direct:" + body)
            time.sleep(pause)  # the connection's timer, set by the request, runs out here
        assert until_closed(connection) == b""
        assert 0.9 * keep < time.monotonic() - answered < keep + SOON
    assert listener.close(SOON)


def test_a_request_that_runs_long_is_not_the_clients_fault(worker: Worker, connect) -> None:
    connection = connect()
    worker.free.clear()
    connection.sendall(post(b"a"))
    time.sleep(PATIENCE + GRACE + 0.5)
    worker.free.set()
    expect(connection, b"direct:a")


def test_what_is_no_request_behind_one_that_runs_ends_both(worker: Worker, connect) -> None:
    connection = connect()
    worker.free.clear()
    connection.sendall(post(b"a") + b"\x00nonsense\r\n\r\n")
    assert until_closed(connection).startswith(b"HTTP/1.1 400 ")
    worker.free.set()
    assert worker.abandoned == 1


def test_a_listener_that_stops_answers_what_runs_and_closes(worker: Worker, listener: HttpListener, connect) -> None:
    running, idle = connect(), connect()
    idle.sendall(post(b"a"))
    expect(idle, b"direct:a")
    worker.free.clear()
    running.sendall(post(b"b"))
    wait_for(lambda: worker.started == 2)
    listener.stop_accepting()
    assert until_closed(idle) == b""
    worker.free.set()
    assert until_closed(running) == b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 8\r\n\r\ndirect:b"


def test_a_worker_may_answer_after_the_loop_has_ended(worker: Worker, connect, listener: HttpListener) -> None:
    connection = connect()
    worker.free.clear()
    connection.sendall(post(b"a"))
    wait_for(lambda: worker.started == 1)
    listener.close(0.2)
    worker.free.set()
    worker.jobs.put(None)
    worker.thread.join(SOON)
    assert not worker.thread.is_alive()


@pytest.mark.parametrize("more", [b"connection: close\r\n", b"expect: 100-continue\r\n"])
def test_what_is_special_is_left_to_the_application(connect, more: bytes) -> None:
    connection = connect()
    connection.sendall(post(b"a", more=more))
    receive_until(connection, lambda got: got.endswith(b"app:a"))


UPGRADES = {
    "websocket": b"connection: Upgrade\r\nupgrade: websocket\r\n",
    "h2c": b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n",
}


@pytest.mark.parametrize("more", UPGRADES.values(), ids=UPGRADES)
@pytest.mark.parametrize("apart", [False, True])
def test_an_offer_of_another_protocol_is_ignored(connect, more: bytes, apart: bool) -> None:
    """Java's HTTP client makes one with its first request."""
    connection = connect()
    for body in (b"a", b"bc"):
        sent = post(body, more=more)
        if apart:
            connection.sendall(sent[: -len(body)])
            time.sleep(0.05)
            sent = body
        connection.sendall(sent)
        expect(connection, b"direct:" + body)
    connection.sendall(post(b"d", b"/app", more))
    expect(connection, b"app:d")
    chunked = b"POST /app HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n%b\r\n1\r\ne\r\n0\r\n\r\n"
    connection.sendall(chunked % more + post(b"f"))
    expect(connection, b"app:e")


def test_a_tunnel_is_refused(connect) -> None:
    connection = connect()
    connection.sendall(b"CONNECT x:80 HTTP/1.1\r\nhost: x\r\n\r\nhello")
    assert until_closed(connection).startswith(b"HTTP/1.1 400 ")
