"""The other end of the administrator's socket, for the commands; imports nothing that scores."""

from __future__ import annotations

import http.client
import json
import os
import socket
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from graphs.base.errors import UgsepError

__all__ = ["ask", "is_served", "runtime_folder", "socket_in"]


def runtime_folder(environ: Mapping[str, str]) -> Path:
    """Return the user's folder for sockets: in ``XDG_RUNTIME_DIR`` if that is set, else in the system's for temporary
    files, named by the user.
    """
    runtime = environ.get("XDG_RUNTIME_DIR", "")
    if os.path.isabs(runtime):
        return Path(runtime) / "ugsep"
    return Path(tempfile.gettempdir()) / f"ugsep-{os.geteuid()}"


def socket_in(folder: Path, port: int) -> Path:
    """Return the socket of the server on an HTTP port."""
    return folder / f"{port}.sock"


def is_served(path: Path) -> bool:
    """Whether a server listens on a socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller:
        caller.settimeout(1.0)
        try:
            caller.connect(os.fspath(path))
        except OSError:
            return False
    return True


def ask(path: Path, request: str, timeout: float | None = None) -> dict[str, Any]:
    """Send a request such as ``POST /rollback`` to a server's socket and return its answer.

    Raises:
        UgsepError: nobody listens there, the answer is not one of ours, or the server refuses; with its line.
    """
    method, target = request.split(" ")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller:
        caller.settimeout(timeout)
        try:
            caller.connect(os.fspath(path))
            caller.sendall(f"{method} {target} HTTP/1.0\r\nContent-Length: 0\r\n\r\n".encode())
            response = http.client.HTTPResponse(caller, method=method)
            response.begin()
            found = json.loads(response.read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            why = (error.strerror if isinstance(error, OSError) else "") or str(error) or type(error).__name__
            raise UgsepError(
                f"{path}: no server of ours answers there ({why}); start 'ugsep serve' or give its --port or --socket"
            ) from error
    if not isinstance(found, dict) or response.status != 200:
        line = found.get("error") if isinstance(found, dict) else None
        raise UgsepError(str(line or f"{path}: not a server of ours (status {response.status}); give its --socket"))
    return found
