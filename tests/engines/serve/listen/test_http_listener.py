from __future__ import annotations

import gc
import http.client
import socket
import threading
import warnings
from contextlib import closing

import pytest

from engines.serve.listen.http_listener import HttpListener, bind, free_port
from graphs.base.errors import UgsepError


async def hello(scope, receive, send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"hi"})


def test_a_bound_port_refuses_connections_until_the_listener_starts() -> None:
    bound = bind("127.0.0.1", 0)
    address = bound.getsockname()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)
    listener = HttpListener(hello, bound, 1.0)
    listener.start()
    with closing(http.client.HTTPConnection(*address, timeout=10)) as connection:
        connection.request("GET", "/")
        assert connection.getresponse().read() == b"hi"
    assert listener.close(5.0)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)


def test_a_port_in_use_is_one_line() -> None:
    listener = HttpListener(hello, bind("127.0.0.1", 0), 1.0)
    listener.start()
    for take in (bind, free_port):
        with pytest.raises(UgsepError, match=f"cannot listen on 127.0.0.1:{listener.port}: Address already in use"):
            take("127.0.0.1", listener.port)
    listener.close(5.0)
    free_port("127.0.0.1", listener.port)


def test_of_two_that_bound_a_port_only_one_listens() -> None:
    first = bind("127.0.0.1", 0)
    second = bind("127.0.0.1", first.getsockname()[1])
    listener = HttpListener(hello, first, 1.0)
    listener.start()
    late = HttpListener(hello, second, 1.0)
    with pytest.raises(UgsepError, match="Address already in use"):
        late.start()
    late.close(1.0)
    listener.close(5.0)


@pytest.mark.parametrize("host", ["192.0.2.1", "no such host", "a" * 70, "ü.invalid\n", "::1%nothing"])
def test_an_address_of_another_machine_is_one_line(host: str) -> None:
    with pytest.raises(UgsepError, match="cannot listen on") as caught:
        bind(host, 0)
    assert "\n" not in str(caught.value)


def test_a_listener_that_was_not_started_frees_its_port() -> None:
    listener = HttpListener(hello, bind("127.0.0.1", 0), 1.0)
    assert listener.close(1.0)
    bind("127.0.0.1", listener.port).close()


def test_connections_that_outlive_their_time_are_cut_and_left_open_nowhere() -> None:
    async def wait(scope, receive, send) -> None:
        entered.set()
        while (await receive())["type"] != "http.disconnect":
            continue

    entered = threading.Event()
    listener = HttpListener(wait, bind("127.0.0.1", 0), 60.0)
    listener.start()
    gc.collect()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with socket.create_connection(("127.0.0.1", listener.port)) as held:
            held.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf")
            assert entered.wait(10.0)
            assert listener.close(0.1)
            held.settimeout(10.0)
            try:
                assert held.recv(1) == b""
            except ConnectionResetError:
                assert listener.connections == 0
        gc.collect()
    assert [str(one.message) for one in seen if one.category is ResourceWarning] == []
