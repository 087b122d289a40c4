"""The administrator's socket: who may use it, what it answers, and how it starts and ends."""

from __future__ import annotations

import io
import os
import socket
import stat
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from engines.serve.observe.log import Log, make_log
from engines.serve.settings import ServeSettings
from engines.serve.swap.admin import AdminSocket, open_admin
from engines.serve.swap.admin_client import ask, is_served, runtime_folder, socket_in
from graphs.base.errors import UgsepError


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short path: the path of a socket has at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="ug") as made:
        yield Path(made)


@pytest.fixture
def lines() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def log(lines: io.StringIO) -> Log:
    return make_log(lines)[0]


def refuse() -> Mapping[str, object]:
    raise UgsepError("no previous\nbundle")


def fail() -> Mapping[str, object]:
    raise ZeroDivisionError


ACTIONS = {"POST /rollback": lambda: {"to": "a"}, "POST /refuse": refuse, "POST /fail": fail, "GET /status": dict}


def test_the_socket_is_for_its_owner_and_gone_afterwards(folder: Path, log: Log) -> None:
    path = folder / "s"
    admin = AdminSocket(path, ACTIONS, log)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert ask(path, "POST /rollback") == {"to": "a"}
    assert ask(path, "GET /status") == {}
    assert is_served(path)
    admin.close()
    assert not path.exists()
    with pytest.raises(
        UgsepError, match=r"no server of ours answers there .*; start 'ugsep serve' or give its --port"
    ):
        ask(path, "GET /status")


def test_errors_are_the_server_s_line(folder: Path, log: Log, lines: io.StringIO) -> None:
    path = folder / "s"
    admin = AdminSocket(path, ACTIONS, log)
    for request, message in (
        ("POST /refuse", "^no previous bundle$"),
        ("POST /fail", "^internal error$"),
        ("GET /rollback", "unknown request; known: POST /rollback"),
    ):
        with pytest.raises(UgsepError, match=message):
            ask(path, request)
    assert "ZeroDivisionError" in lines.getvalue()
    admin.close()


def test_a_stale_socket_is_replaced_a_live_one_and_a_file_are_not(folder: Path, log: Log) -> None:
    path = folder / "s"
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(path))
    admin = AdminSocket(path, ACTIONS, log)
    with pytest.raises(UgsepError, match="another server listens there"):
        AdminSocket(path, ACTIONS, log)
    assert ask(path, "POST /rollback") == {"to": "a"}
    os.unlink(path)
    newer = AdminSocket(path, ACTIONS, log)
    admin.close()
    assert ask(path, "POST /rollback") == {"to": "a"}, "closing the first leaves the socket of the second"
    newer.close()
    path.write_text("notes")
    with pytest.raises(UgsepError, match="a file is in the way"):
        AdminSocket(path, ACTIONS, log)
    assert path.read_text() == "notes"


@pytest.mark.parametrize(
    ("path", "message"), [("missing/s", "cannot listen there"), ("x" * 120, "longer than 107 bytes")]
)
def test_a_path_that_cannot_be_a_socket_is_one_line(folder: Path, log: Log, path: str, message: str) -> None:
    with pytest.raises(UgsepError, match=message):
        AdminSocket(folder / path, ACTIONS, log)


def test_a_caller_that_says_nothing_holds_up_nobody(folder: Path, log: Log) -> None:
    path = folder / "s"
    admin = AdminSocket(path, ACTIONS, log)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.connect(str(path))
        silent.sendall(b"POST /roll")
        assert ask(path, "POST /rollback", timeout=5) == {"to": "a"}
    with socket.socket(socket.AF_UNIX) as rude:
        rude.connect(str(path))
        rude.sendall(b"\xff\x00nonsense\r\n\r\n")
    assert ask(path, "POST /rollback", timeout=5) == {"to": "a"}
    admin.close()


def test_a_status_is_answered_while_a_reload_runs(folder: Path, log: Log) -> None:
    reloading, done = threading.Event(), threading.Event()

    def reload() -> Mapping[str, object]:
        reloading.set()
        assert done.wait(10)
        return {"outcome": "serving"}

    path = folder / "s"
    admin = AdminSocket(path, {"POST /reload": reload, "GET /status": lambda: {"model": {}}}, log)
    found: list[Mapping[str, object]] = []
    caller = threading.Thread(target=lambda: found.append(ask(path, "POST /reload")))
    caller.start()
    assert reloading.wait(10)
    assert ask(path, "GET /status", timeout=5) == {"model": {}}
    done.set()
    caller.join(10)
    assert found == [{"outcome": "serving"}]
    admin.close()


def test_the_folder_for_sockets_is_the_user_s() -> None:
    assert runtime_folder({"XDG_RUNTIME_DIR": "/run/user/7"}) == Path("/run/user/7/ugsep")
    own = Path(tempfile.gettempdir()) / f"ugsep-{os.geteuid()}"
    assert runtime_folder({}) == runtime_folder({"XDG_RUNTIME_DIR": "relative"}) == own


def test_a_named_socket_must_work_the_default_one_need_not(folder: Path, log: Log, lines: io.StringIO) -> None:
    settings = ServeSettings(folder, runtime_folder=folder / "own")
    admin = open_admin(settings, 8123, ACTIONS, log)
    assert admin is not None
    assert admin.path == socket_in(folder / "own", 8123)
    assert stat.S_IMODE((folder / "own").stat().st_mode) == 0o700
    assert open_admin(settings, 8123, ACTIONS, log) is None
    assert "no admin socket" in lines.getvalue()
    with pytest.raises(UgsepError, match="another server listens there"):
        open_admin(ServeSettings(folder, admin_socket=admin.path), 8123, ACTIONS, log)
    admin.close()
    assert open_admin(ServeSettings(folder), 8123, ACTIONS, log) is None


def test_a_folder_that_others_can_write_to_is_not_used(folder: Path, log: Log, lines: io.StringIO) -> None:
    open_to_all = folder / "shared"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    link = folder / "link"
    link.symlink_to(folder)
    for unsafe in (open_to_all, link):
        assert open_admin(ServeSettings(folder, runtime_folder=unsafe), 8123, ACTIONS, log) is None
    assert lines.getvalue().count("only this user can write to") == 2
