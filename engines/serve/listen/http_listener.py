"""The HTTP side of the server: a socket, and uvicorn in a thread of its own."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
import time

import uvicorn

from engines.serve.listen.closing import App, close_unasked
from engines.serve.listen.direct_response import Admit
from engines.serve.listen.http_protocol import bounded_protocol
from engines.serve.listen.new_connections import ignore_new_connections
from graphs.base.errors import UgsepError

__all__ = ["HttpListener", "bind", "free_port"]

KEEP_ALIVE = 75  # seconds between two requests; longer than load balancers keep theirs (60), so they close first
START_LIMIT = 30.0  # seconds
BACKLOG = 2048
ACCEPT_REST = 0.1  # seconds
CUT_REST = 0.01  # seconds


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that has the port but does not listen yet, so that nothing connects before the bundle serves.

    Raises:
        UgsepError: the port is in use, or the address is not one of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        made = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise UgsepError(f"cannot listen on {host!a}: {_why(error)}; give an address of this machine") from error
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # not refused while old connections time out
        made.bind(address)
    except OSError as error:
        made.close()
        raise _unusable(host, port, error) from error
    return made


def free_port(host: str, port: int) -> None:
    """Check that a port can be had, for a listener that binds it only later.

    Raises:
        UgsepError: as in ``bind``.
    """
    bind(host, port).close()


class HttpListener:
    """uvicorn on a bound socket; it accepts connections once ``start`` has returned.

    ``patience`` and ``admit`` as in ``bounded_protocol``.
    """

    def __init__(
        self, app: App, bound: socket.socket, patience: float, admit: Admit = lambda url, headers: None
    ) -> None:
        self._socket = bound
        self.host, self.port = bound.getsockname()[:2]
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # it warns about every malformed request
        config = uvicorn.Config(
            close_unasked(app),
            loop="uvloop",
            http=bounded_protocol(patience, admit),
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE,
        )
        self._server = _Server(config)
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="ugsep-http", daemon=True)

    @property
    def connections(self) -> int:
        """The number of open connections."""
        return len(self._server.server_state.connections)

    def start(self) -> None:
        """Accept connections.

        Raises:
            UgsepError: another process listens since the port was bound, or uvicorn did not start.
        """
        try:
            self._socket.listen(BACKLOG)
        except OSError as error:
            raise _unusable(self.host, self.port, error) from error
        self._thread.start()
        if not self._server.up.wait(START_LIMIT) or self._failure is not None:
            raise UgsepError(f"the HTTP server did not start: {self._failure or 'no answer'}; see the log")

    def stop_accepting(self) -> None:
        """Accept no connection from now on, close the idle ones, and go on with the responses under way.

        Connections that the system has made already are accepted first: closing would reset them.
        """
        if self._thread.is_alive() and not self._server.should_exit and ignore_new_connections(self._socket):
            time.sleep(ACCEPT_REST)
        self._server.should_exit = True

    def close(self, seconds: float) -> bool:
        """Wait up to ``seconds`` for the responses under way, then cut them; return whether the thread ended."""
        self.stop_accepting()
        if not self._thread.ident:
            self._socket.close()
            return True
        self._thread.join(seconds)
        if self._thread.is_alive():
            self._server.force_exit = True
            self._thread.join(1.0)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._server.run([self._socket])
        except BaseException as error:  # also SystemExit, which uvicorn raises
            self._failure = error
        finally:
            self._server.up.set()


class _Server(uvicorn.Server):
    """uvicorn, saying when it accepts, and leaving no connection open in a loop that has ended."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.up.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        for connection in list(self.server_state.connections):  # of a forced end
            connection.transport.abort()
        # The applications behind them notice, instead of being cancelled and answering 500.
        await asyncio.sleep(CUT_REST)


def _unusable(host: str, port: int, error: OSError) -> UgsepError:
    why = f"{_why(error)}; stop what uses it, or give another port or an address of this machine"
    return UgsepError(f"cannot listen on {ascii(host)[1:-1]}:{port}: {why}")


def _why(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
