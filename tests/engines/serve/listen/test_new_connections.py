import socket
import sys

import pytest

from engines.serve.listen.new_connections import ignore_new_connections


@pytest.mark.skipif(sys.platform != "linux", reason="the filter is Linux's")
def test_connections_made_before_are_accepted_and_new_ones_are_not_made() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening, socket.socket() as late:
        address = listening.getsockname()
        early = socket.create_connection(address)
        early.sendall(b"sent before the accept")
        assert ignore_new_connections(listening)
        late.settimeout(0.3)
        with pytest.raises(TimeoutError):
            late.connect(address)
        accepted, _ = listening.accept()
        assert accepted.recv(100) == b"sent before the accept"
        early.sendall(b"and after")
        assert accepted.recv(100) == b"and after"
        accepted.close()
        early.close()


def test_a_socket_without_a_connection_to_filter_is_no_error() -> None:
    closed = socket.socket()
    closed.close()
    assert not ignore_new_connections(closed)
