"""Limits of the HTTP side: bodies too large or too slow, a full queue, deadlines, callers that hang up."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from engines.serve.oip.http.direct import DirectInfer
from tests import tiny
from tests.engines.serve.oip.local_server import PATIENCE, LocalServer, json_body, serving


def valid(seed: int = 0) -> bytes:
    user, items = tiny.user_and_items(3, seed)
    return json_body({**user, **items})


def raw(server: LocalServer, sent: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", server.http_port), PATIENCE)
    connection.sendall(sent)
    return connection


def answer_of(connection: socket.socket) -> bytes:
    with connection:
        received = b""
        while chunk := connection.recv(65536):
            received += chunk
        return received


@contextmanager
def blocked(server: LocalServer) -> Iterator[None]:
    """Keep the only worker busy."""
    score, entered, released = server.ranker.score_requests, threading.Event(), threading.Event()

    def slow(requests):
        entered.set()
        assert released.wait(PATIENCE)
        return score(requests)

    server.ranker.score_requests = slow  # type: ignore[method-assign]
    thread = threading.Thread(target=server.infer, args=(valid(),))
    thread.start()
    assert entered.wait(PATIENCE)
    try:
        yield
    finally:
        server.ranker.score_requests = score  # type: ignore[method-assign]
        released.set()
        thread.join(PATIENCE)
        assert not thread.is_alive()


def wait_for(condition) -> None:
    until = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_body_over_the_limit_is_refused_before_it_is_read(server: LocalServer) -> None:
    head = b"POST /v2/models/tiny/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n"
    connection = raw(server, head)
    answer = answer_of(connection)  # the server answers and closes although no byte of the body was sent
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"larger than 1048576 bytes" in answer


def test_a_chunked_body_over_the_limit_is_refused(server: LocalServer) -> None:
    connection = server.http()
    connection.request("POST", "/v2/models/tiny/infer", iter([b" " * (1 << 18)] * 6), {}, encode_chunked=True)
    assert connection.getresponse().status == 413
    connection.close()


def test_a_caller_that_still_sends_gets_the_answer(server: LocalServer) -> None:
    status, headers, body = server.send("POST", "/v2/models/tiny/infer", b" " * (16 << 20))
    assert (status, headers["Connection"]) == (413, "close")
    assert json.loads(body)["error"].startswith("the body is larger")


def test_a_slow_body_is_cut_and_holds_no_worker(server: LocalServer) -> None:
    head = b"POST /v2/models/tiny/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"
    slow = [raw(server, head) for _ in range(50)]
    status, _ = server.infer(valid())
    assert status == 200
    for connection in slow:
        assert answer_of(connection).startswith(b"HTTP/1.1 408 ")


def test_a_caller_that_hangs_up_harms_nobody(server: LocalServer) -> None:
    body = valid(3)
    head = b"POST /v2/models/tiny/infer HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
    for sent in (head, head + body[:50], head + body):
        raw(server, sent).close()
    assert server.infer(body)[0] == 200


@pytest.mark.parametrize(
    ("model", "length", "status"), [(b"tiny", 99_999_999, b"413"), (b"nope", 100, b"400"), (b"tiny", 100, b"429")]
)
@pytest.mark.parametrize("sends", [False, True], ids=["waits", "sends anyhow"])
def test_a_body_refused_before_it_was_asked_for_ends_the_connection(
    built_bundle: Path, model: bytes, length: int, status: bytes, sends: bool
) -> None:
    head = b"POST /v2/models/%b/infer HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n"
    with serving(built_bundle, queue=1, max_body=1 << 20) as server, blocked(server):
        waiting = threading.Thread(target=server.infer, args=(valid(),))
        waiting.start() if status == b"429" else None
        wait_for(lambda: server.context.scheduler.waiting == (status == b"429"))
        connection = raw(server, head % (model, length) + (b" " * 100 if sends else b""))
        answer = answer_of(connection)  # until it is closed, although the client neither sends nor closes
        assert answer.startswith(b"HTTP/1.1 " + status)
        assert answer.count(b"\r\nconnection: close\r\n") == 1
    if status == b"429":
        waiting.join(PATIENCE)


@pytest.mark.parametrize("more", [b"", b"Connection: close\r\n"], ids=["direct", "application"])
def test_a_request_whose_caller_hung_up_in_the_queue_is_not_scored(built_bundle: Path, more: bytes) -> None:
    body = valid(3)
    head = b"POST /v2/models/tiny/infer HTTP/1.1\r\nHost: x\r\n%bContent-Length: %d\r\n\r\n" % (more, len(body))
    with serving(built_bundle) as server:
        scheduler = server.context.scheduler
        with blocked(server):
            connection = raw(server, head + body)
            wait_for(lambda: scheduler.waiting == 1)
            (entry,) = scheduler._queue
            assert entry.job.deadline is None
            connection.close()
            wait_for(lambda: entry.job.deadline is not None)  # noticed while the worker is busy
        wait_for(lambda: server.answered(200) + server.answered(504) == 2)
        assert server.answered(200) == 1, "only the one that kept the worker busy"
        assert server.infer(body)[0] == 200
    assert server.bugs == []


@pytest.mark.parametrize(
    ("header", "value", "line"),
    [
        ("Content-Encoding", "gzip", "compressed"),
        ("Inference-Header-Content-Length", "-1", "whole number"),
        ("Inference-Header-Content-Length", "1e3", "whole number"),
        ("Inference-Header-Content-Length", "99999999999999999999", "whole number"),
        ("Inference-Header-Content-Length", "100000", "the body has"),
        ("Inference-Header-Content-Length", "0", "JSON"),
        ("x-request-timeout-ms", "soon", "whole number"),
        ("x-request-timeout-ms", "999999999999", "timeout"),
    ],
)
def test_headers_that_lie_are_refused(server: LocalServer, header: str, value: str, line: str) -> None:
    status, _, body = server.send("POST", "/v2/models/tiny/infer", valid(), {header: value})
    assert (status, line in json.loads(body)["error"]) == (400, True), body


def test_a_length_given_twice_is_refused(server: LocalServer) -> None:
    body = valid()
    lengths = b"Inference-Header-Content-Length: 5\r\n" * 2
    head = b"POST /v2/models/tiny/infer HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n" % len(
        body
    )
    answer = answer_of(raw(server, head + lengths + b"\r\n" + body))
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"is given twice" in answer


def test_a_full_queue_refuses_at_once_and_says_when_to_retry(built_bundle: Path) -> None:
    with serving(built_bundle, queue=2) as server:
        with blocked(server):
            waiting = [threading.Thread(target=server.infer, args=(valid(i),)) for i in range(2)]
            for thread in waiting:
                thread.start()
            wait_for(lambda: server.context.scheduler.waiting == 2)
            refuse = DirectInfer(server.context, server.signatures)
            url, length = b"/v2/models/tiny/infer", (b"content-length", b"100")
            early = refuse(url, [(b"host", b"x"), length])
            assert isinstance(early, bytes)
            head, _, body = early.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 429 ")
            assert head.endswith(b"\r\ncontent-length: %d\r\nretry-after: 1" % len(body))
            assert json.loads(body)["error"].startswith("2 requests are waiting")
            # What cannot be refused by its headers on a connection that lives on is left to the application.
            for other in ((b"/v2", [length]), (url, []), (url, [(b"content-length", b"9" * 12)])):
                assert refuse(*other) is None
            started = time.monotonic()
            # Refused from the header alone: the body is never sent.
            head = b"POST /v2/models/tiny/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n"
            connection = raw(server, head)
            answer = b""
            while not answer.endswith(b"}"):
                answer += connection.recv(65536)
            assert answer.startswith(b"HTTP/1.1 429 ")
            assert b"\r\nretry-after: 1\r\n" in answer
            assert time.monotonic() - started < PATIENCE / 4
            # The connection lives on: the body that follows is dropped, and the next request is served.
            connection.sendall(b" " * 100 + b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert answer_of(connection).startswith(b"HTTP/1.1 200 ")
            status, _, _ = server.send("POST", "/v2/models/tiny/infer", valid())
            assert status == 429
        for thread in waiting:
            thread.join(PATIENCE)
        wait_for(lambda: server.answered(200) == 3)  # counted after they are delivered
        assert server.answered(429) == 3
        assert not isinstance(refuse(url, [length]), bytes)
    assert server.bugs == []


def test_a_request_whose_deadline_passed_is_not_scored(built_bundle: Path) -> None:
    with serving(built_bundle) as server:
        answers: list[tuple[int, object]] = []
        own = json.loads(valid())
        own["parameters"] = {"timeout": 20_000}
        late = (
            (valid(), {"x_request_timeout_ms": "20"}),
            (json.dumps(own).encode(), {}),
            (json.dumps(own).encode(), {"x_request_timeout_ms": "60000"}),  # the earlier of the two counts
        )
        with blocked(server):
            threads = [
                threading.Thread(target=lambda b=body, h=headers: answers.append(server.infer(b, **h)))
                for body, headers in late
            ]
            for thread in threads:
                thread.start()
            wait_for(lambda: server.context.scheduler.waiting == 3)
            time.sleep(0.05)
        for thread in threads:
            thread.join(PATIENCE)
        assert [status for status, _ in answers] == [504] * 3
        own["parameters"] = {"timeout": 60_000_000}
        assert server.infer(json.dumps(own).encode())[0] == 200
    assert server.bugs == []


def test_the_default_deadline_is_for_requests_without_their_own(built_bundle: Path) -> None:
    with serving(built_bundle, request_timeout=0.05) as server:
        answers: list[int] = []
        own = json.loads(valid())
        own["parameters"] = {"timeout": 60_000_000}
        bodies = {504: valid(), 200: json.dumps(own).encode()}
        with blocked(server):
            threads = [
                threading.Thread(target=lambda b=body: answers.append(server.infer(b)[0])) for body in bodies.values()
            ]
            for thread in threads:
                thread.start()
            wait_for(lambda: server.context.scheduler.waiting == 2)
            time.sleep(0.1)
        for thread in threads:
            thread.join(PATIENCE)
        assert sorted(answers) == [200, 504]
