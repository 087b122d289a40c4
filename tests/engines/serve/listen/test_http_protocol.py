"""Slow, silent and endless clients against a real listener with a small application."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from engines.serve.listen import http_listener
from engines.serve.listen.http_listener import HttpListener, bind
from engines.serve.listen.http_protocol import GRACE, MOST_HEADER_BYTES
from tests.engines.serve.listen.connections import read_body, receive_exactly, receive_until

PATIENCE = 0.3  # of the listener
SOON = PATIENCE + GRACE + 10.0  # generous: the machine may be busy
BIG = 8 << 20  # more than the buffers of a loopback connection hold


async def app(scope, receive, send) -> None:
    """Answer with the length of the body, or with a big body at /big; ignore the body at /early."""
    got = b"" if scope["path"] in ("/early", "/big") else await read_body(receive)
    if got is None:
        return
    body = b"x" * BIG if scope["path"] == "/big" else b"%d" % len(got)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture
def listener() -> Iterator[HttpListener]:
    made = HttpListener(app, bind("127.0.0.1", 0), PATIENCE)
    made.start()
    yield made
    made.close(5.0)


@pytest.fixture
def port(listener: HttpListener) -> int:
    return listener.port


@pytest.fixture
def connect(port: int) -> Iterator[Callable[[], socket.socket]]:
    with ExitStack() as opened:

        def one() -> socket.socket:
            made = opened.enter_context(socket.create_connection(("127.0.0.1", port)))
            made.settimeout(SOON)
            return made

        yield one


def ask(port: int, body: bytes = b"hello") -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SOON)
    connection.request("POST", "/", body)
    answer = connection.getresponse().read()
    connection.close()
    return answer


def was_cut(connection: socket.socket) -> bool:
    """Whether the server ends the connection by itself, whatever it wrote before."""
    try:
        while connection.recv(1 << 16):
            continue
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False
    return True


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"POST / HTTP/1.1\r\nHos",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nonly this",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel",
        b"GET /early HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n",  # answered before the body is there
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\nPOST / HT",
    ],
)
def test_a_client_that_stops_in_the_middle_is_cut(connect, sent: bytes) -> None:
    connection = connect()
    connection.sendall(sent)
    assert was_cut(connection)


def test_a_client_that_says_nothing_useful_after_an_answer_is_cut(connect) -> None:
    connection = connect()
    connection.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")
    assert connection.recv(1000).endswith(b"0")
    connection.sendall(b"\r\n")
    assert was_cut(connection)


def drip(connection: socket.socket, seconds: float) -> None:
    """Send byte after byte until the connection ends, or the time does."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        connection.sendall(b"a")
        time.sleep(0.05)


def test_a_client_that_drips_is_cut_although_it_never_stops(connect) -> None:
    connection = connect()
    began = time.monotonic()
    connection.sendall(b"GET / HTTP/1.1\r\nX: ")
    with pytest.raises(ConnectionError):
        drip(connection, SOON)
    assert time.monotonic() - began >= PATIENCE


def test_a_client_that_does_not_read_its_answer_is_cut(listener: HttpListener, connect) -> None:
    connection = connect()
    connection.sendall(b"GET /big HTTP/1.1\r\nHost: a\r\n\r\n")
    connection.recv(1)
    assert listener.connections == 1
    until = time.monotonic() + SOON
    while listener.connections and time.monotonic() < until:
        time.sleep(0.05)
    assert listener.connections == 0


def test_a_big_answer_is_read_whole_by_a_client_that_reads(port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SOON)
    connection.request("GET", "/big")
    assert len(connection.getresponse().read()) == BIG
    connection.close()


def test_an_idle_connection_between_two_requests_is_kept(port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SOON)
    for _ in range(2):
        connection.request("POST", "/", b"abc")
        assert connection.getresponse().read() == b"3"
        time.sleep(PATIENCE + GRACE + 0.3)
    connection.close()


@pytest.mark.parametrize("head", [b"GET /", b"GET / HTTP/1.1\r\nX: "])
def test_endless_headers_are_refused(connect, head: bytes) -> None:
    connection = connect()
    connection.sendall(head)
    sent = 0
    try:
        while sent < 100 * MOST_HEADER_BYTES:
            connection.sendall(b"a" * 4096)
            sent += 4096
        answer = connection.recv(100)
    except ConnectionError:
        answer = b"HTTP/1.1 400"
    assert answer.startswith(b"HTTP/1.1 400")
    assert sent < 100 * MOST_HEADER_BYTES, "it was noticed while they came"


def test_many_headers_are_refused(connect) -> None:
    connection = connect()
    connection.sendall(b"GET / HTTP/1.1\r\n" + b"".join(b"A%d: bbbbbbbbbb\r\n" % n for n in range(8000)) + b"\r\n")
    assert connection.recv(100).startswith(b"HTTP/1.1 400")


EMPTY = b"a:\r\n"  # one byte of name and value
BEFORE, BODY = b"POST / HTTP/1.1\r\nHost: a\r\n", b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n"


@pytest.mark.parametrize(
    ("before", "filler", "after"),
    [
        (BEFORE, EMPTY, BODY + b"\r\n"),
        (BEFORE, b"a:" + b" " * 94 + b"\r\n", BODY + b"\r\n"),
        (b"", b"\r\n", BEFORE + BODY + b"\r\n"),
        (BEFORE + BODY, EMPTY, b"\r\n"),
    ],
    ids=["empty", "spaces", "blank lines", "trailers"],
)
def test_headers_are_bounded_by_their_bytes_not_by_their_names_and_values(
    connect, before: bytes, filler: bytes, after: bytes
) -> None:
    few = (MOST_HEADER_BYTES - len(before + after)) // len(filler)
    for count, wanted in ((few, b"HTTP/1.1 200"), (MOST_HEADER_BYTES // len(filler) + 1, b"HTTP/1.1 400")):
        connection = connect()
        connection.sendall(before + count * filler + after)
        received = receive_until(connection, lambda got: b"\r\n\r\n" in got and got[-1:] in b"3}")
        assert received.startswith(wanted), received
        assert (b"too large" in received) == wanted.endswith(b"400")


@pytest.mark.parametrize("folded", [b"x\r\n y", b"\r\n y", b"\r\n" + b" \r\n" * 5000 + b" y"])
def test_folded_headers_are_refused(connect, folded: bytes) -> None:
    connection = connect()
    connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nA: " + folded + b"\r\n\r\n")
    assert connection.recv(100).startswith(b"HTTP/1.1 400")


HALF = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n12345"


def test_half_open_connections_hold_up_nobody() -> None:
    """The answer comes while all of them are open: nobody waits for one to end, however busy the machine is."""
    listener = HttpListener(app, bind("127.0.0.1", 0), 3600.0)
    listener.start()
    with ExitStack() as opened:
        opened.callback(listener.close, 0.0)
        for _ in range(200):
            opened.enter_context(socket.create_connection(("127.0.0.1", listener.port))).sendall(HALF)
        assert ask(listener.port) == b"5"
        assert listener.connections >= 200


def test_half_open_connections_are_cut_and_hold_up_nobody_afterwards(port: int, connect) -> None:
    held = [connect() for _ in range(200)]
    for connection in held:
        connection.sendall(HALF)
    assert all(map(was_cut, held))
    assert ask(port) == b"5"


def test_pipelined_requests_are_answered_in_order(connect) -> None:
    connection = connect()
    request = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s"
    connection.sendall(b"".join(request % (n, b"x" * n) for n in range(1, 6)))
    received = receive_until(connection, lambda got: got.count(b"\r\n\r\n") >= 5)
    assert [part.split(b"\r\n")[0][:1] for part in received.split(b"\r\n\r\n")[1:]] == [b"1", b"2", b"3", b"4", b"5"]


def test_threads_of_clients_are_all_answered(port: int) -> None:
    answers: list[bytes] = []
    threads = [threading.Thread(target=lambda: answers.append(ask(port, b"z" * 100_000))) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [b"100000"] * 20


REFUSED = b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 2\r\n\r\nno"


@pytest.fixture
def refusing() -> Iterator[socket.socket]:
    """A connection to a listener that refuses POST /full by its headers."""

    def refuse(url, headers) -> bytes | None:
        assert all(name == name.lower() for name, _ in headers)
        return REFUSED if url == b"/full" else None

    made = HttpListener(app, bind("127.0.0.1", 0), PATIENCE, refuse)
    made.start()
    with socket.create_connection(("127.0.0.1", made.port)) as connection:
        connection.settimeout(SOON)
        yield connection
    made.close(5.0)


def post(path: bytes, body: bytes, more: bytes = b"") -> bytes:
    return b"POST %s HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n%s\r\n%s" % (path, len(body), more, body)


SERVED = b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n5"


def test_a_request_is_refused_by_its_headers_and_its_body_dropped(refusing: socket.socket) -> None:
    whole = post(b"/full", b"x" * 200_000)
    refusing.sendall(whole[:100])
    assert receive_exactly(refusing, len(REFUSED)) == REFUSED  # before the body is there
    refusing.sendall(whole[100:] + post(b"/", b"hello"))
    assert receive_exactly(refusing, len(SERVED)) == SERVED  # the connection serves the next request


def test_refusals_keep_the_order_of_pipelined_requests(refusing: socket.socket) -> None:
    refusing.sendall(post(b"/", b"hello") + post(b"/full", b"") + post(b"/full", b"abc") + post(b"/", b"hello"))
    got = receive_exactly(refusing, len(SERVED))
    assert got == SERVED
    # Behind a request that runs, the application answers: here 200 as well, since it knows no full queue.
    rest = receive_exactly(refusing, 3 * len(SERVED))
    assert rest.count(b"HTTP/1.1 ") == 3
    assert rest.endswith(SERVED)


def test_a_connection_lives_on_after_a_refusal(refusing: socket.socket) -> None:
    refusing.sendall(post(b"/full", b"abc"))
    assert receive_exactly(refusing, len(REFUSED)) == REFUSED
    time.sleep(PATIENCE + GRACE + 0.5)
    refusing.sendall(post(b"/full", b"abc"))
    assert receive_exactly(refusing, len(REFUSED)) == REFUSED


def test_an_idle_connection_is_closed_that_long_after_its_last_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    keep = 1.0
    monkeypatch.setattr(http_listener, "KEEP_ALIVE", keep)
    listener = HttpListener(app, bind("127.0.0.1", 0), SOON, lambda url, headers: REFUSED)
    listener.start()
    with socket.create_connection(("127.0.0.1", listener.port)) as connection:
        connection.settimeout(SOON)
        for _ in range(3):  # longer than the timer that the first one started
            asked = time.monotonic()
            connection.sendall(post(b"/full", b"abc"))
            assert receive_exactly(connection, len(REFUSED)) == REFUSED
            time.sleep(0.6 * keep)
        assert connection.recv(1) == b""
        assert 0.9 * keep < time.monotonic() - asked < keep + SOON
    listener.close(5.0)


def test_a_refused_request_that_never_ends_is_cut(refusing: socket.socket) -> None:
    refusing.sendall(post(b"/full", b"x" * 100)[:-10])
    assert receive_exactly(refusing, len(REFUSED)) == REFUSED
    assert was_cut(refusing)


@pytest.mark.parametrize("more", [b"connection: close\r\n", b"expect: 100-continue\r\n"])
def test_what_ends_a_connection_is_left_to_the_application(refusing: socket.socket, more: bytes) -> None:
    refusing.sendall(post(b"/full", b"hello", more))
    assert b"HTTP/1.1 200 " in receive_exactly(refusing, len(SERVED))
