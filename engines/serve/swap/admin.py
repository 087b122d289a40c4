"""The administrator's socket: rollback, reload and status over HTTP on a Unix socket, never on a port."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import socketserver
import stat
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from engines.serve.observe.log import Log
from engines.serve.settings import ServeSettings
from engines.serve.swap.admin_client import is_served, socket_in
from engines.serve.swap.watcher import Watcher
from graphs.base.errors import UgsepError, printable_line

__all__ = ["AdminSocket", "admin_actions", "open_admin"]

Action = Callable[[], Mapping[str, Any]]

_LONGEST = 107  # bytes of a socket's path on Linux
_READ_SECONDS = 10.0


def admin_actions(watcher: Watcher, status: Action) -> dict[str, Action]:
    """Return what the socket offers, by method and path."""

    def rollback() -> Mapping[str, Any]:
        return watcher.rollback().as_dict()

    def reload() -> Mapping[str, Any]:
        swap = watcher.reload()
        return swap.as_dict() if swap is not None else {"outcome": "unchanged"}

    return {"POST /rollback": rollback, "POST /reload": reload, "GET /status": status}


def open_admin(settings: ServeSettings, port: int, actions: Mapping[str, Action], log: Log) -> AdminSocket | None:
    """Open the socket that the settings name, or the one for the HTTP port in the user's folder for sockets.

    The second is a convenience: if it cannot be opened, the log says why and None is returned.

    Raises:
        UgsepError: the socket that the settings name cannot be opened.
    """
    if settings.admin_socket is not None:
        return AdminSocket(settings.admin_socket, actions, log)
    if settings.runtime_folder is None:
        return None
    try:
        _make_private(settings.runtime_folder)
        return AdminSocket(socket_in(settings.runtime_folder, port), actions, log)
    except UgsepError as error:
        log.warning("no admin socket: 'ugsep rollback' and 'ugsep reload' cannot reach this server", reason=error)
        return None


class AdminSocket:
    """A Unix socket for this user alone (mode 0600), served by threads of its own until ``close``.

    ``actions`` are by method and path, ``POST /rollback``. A stale socket of a killed server is replaced.

    Raises:
        UgsepError: another server listens there, or the socket cannot be made.
    """

    def __init__(self, path: Path, actions: Mapping[str, Action], log: Log) -> None:
        self.path = path
        listening = _listen(path)
        self._identity = _inode(path)
        self._server = _server(listening, actions, log)
        self._thread = threading.Thread(target=self._server.serve_forever, name="ugsep-admin", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening and remove the socket, unless another server has replaced it."""
        self._server.shutdown()
        self._server.server_close()
        if _inode(self.path) == self._identity:
            self.path.unlink(missing_ok=True)


def _make_private(folder: Path) -> None:
    """Create the folder for this user alone; one in /tmp could have been made by somebody else."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise UgsepError(f"{folder}: cannot be made ({error.strerror}); give --admin-socket") from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise UgsepError(f"{folder}: not a folder that only this user can write to; give --admin-socket")


def _listen(path: Path) -> socket.socket:
    if len(os.fsencode(path)) > _LONGEST:
        raise UgsepError(f"{path}: longer than {_LONGEST} bytes, the most a socket's path may have; choose another")
    if is_served(path):
        raise UgsepError(f"{path}: another server listens there; stop it or choose another --admin-socket")
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISSOCK(path.lstat().st_mode):
                raise UgsepError(f"{path}: a file is in the way; remove it or choose another --admin-socket")
            path.unlink()
        os.fchmod(listening.fileno(), 0o600)  # Linux makes the file with this mode, so nobody else ever connects
        listening.bind(os.fspath(path))
        path.chmod(0o600)
        listening.listen(16)
    except OSError as error:
        listening.close()
        raise UgsepError(
            f"{path}: cannot listen there ({error.strerror or error}); choose another --admin-socket"
        ) from error
    except UgsepError:
        listening.close()
        raise
    return listening


def _server(listening: socket.socket, actions: Mapping[str, Action], log: Log) -> socketserver.BaseServer:
    class Handler(BaseHTTPRequestHandler):
        timeout = _READ_SECONDS

        def do_GET(self) -> None:
            self._run()

        def do_POST(self) -> None:
            self._run()

        def _run(self) -> None:
            action = actions.get(f"{self.command} {self.path}")
            if action is None:
                self._send(404, {"error": f"unknown request; known: {', '.join(actions)}"})
                return
            try:
                self._send(200, action())
            except UgsepError as error:
                self._send(409, {"error": printable_line(str(error))})
            except Exception as error:
                log.bug(error)
                self._send(500, {"error": "internal error"})

        def _send(self, code: int, document: Mapping[str, Any]) -> None:
            body = json.dumps(document).encode() + b"\n"
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Write nothing: the actions write their own lines."""

    class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
        daemon_threads = True
        block_on_close = False  # a reload may take minutes

        def handle_error(self, request: object, client_address: object) -> None:
            """Ignore a caller that hung up."""

    server = Server("", Handler, bind_and_activate=False)
    server.socket.close()
    server.socket = listening
    return server


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
