"""A server: a bundle behind the protocols, from its start to its end."""

from __future__ import annotations

import gc
import json
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TextIO

from engines.serve.core.model_slot import ModelSlot
from engines.serve.listen.closing import close_when
from engines.serve.listen.http_listener import HttpListener, bind, free_port
from engines.serve.listen.signals import hang_up_noted, received_signals
from engines.serve.observe.log import Log, make_log
from engines.serve.oip.grpc_server import GrpcServer, start_grpc
from engines.serve.oip.http.app import make_app
from engines.serve.oip.http.direct import DirectInfer
from engines.serve.oip.signature import Signatures
from engines.serve.page.routes import page_routes
from engines.serve.running.assembly import make_context
from engines.serve.running.context import ServerContext
from engines.serve.running.status import status
from engines.serve.settings import ServeSettings, address
from engines.serve.swap.admin import AdminSocket, admin_actions, open_admin
from engines.serve.swap.loading import load_bundle
from engines.serve.swap.watcher import Watcher
from graphs.base.errors import UgsepError

__all__ = ["RunningServer", "run", "start"]

LIBRARIES = ("uvicorn", "asyncio", "grpc", "concurrent.futures", "opentelemetry")
CUT_LIMIT = 1.0  # seconds for the threads to notice that they are cut
#: How long a thread may compute in Python before others run; 5 ms by default, for which the event loop would wait
#: whenever metrics are rendered or a large JSON body is parsed.
SWITCH_SECONDS = 5e-4
SLICE = 0.1  # seconds between two looks at whether a wait is cut


@dataclass(frozen=True)
class RunningServer:
    """A server that accepts requests; ``stop`` ends it."""

    context: ServerContext
    watcher: Watcher
    http: HttpListener
    grpc: GrpcServer | None
    admin: AdminSocket | None
    after: ExitStack  # what is closed when the last request is answered

    @property
    def url(self) -> str:
        """The address of the HTTP side."""
        return f"http://{address(self.http.host, self.http.port)}"

    def describe(self) -> dict[str, Any]:
        """Return addresses, model and version, for the line that says that the server is ready."""
        served = self.context.slot.current()
        grpc = address(self.context.settings.host, self.grpc.port) if self.grpc is not None else None
        admin = str(self.admin.path) if self.admin is not None else None
        return {"http": self.url, "grpc": grpc, "admin": admin, "model": served.name, "version": served.version}

    def stop(self, cut: threading.Event | None = None) -> bool:
        """Stop as a load balancer expects it, and return whether every request that was accepted was answered.

        Not ready at once; after ``drain_seconds`` nothing more is accepted; what waits and runs is finished within
        ``drain_limit``. Setting ``cut`` ends either wait.
        """
        cut = cut or threading.Event()
        context, settings = self.context, self.context.settings
        context.lifecycle.change("draining")
        context.log.info("draining", seconds=settings.drain_seconds, limit=settings.drain_limit)
        _wait(cut, settings.drain_seconds)
        self.http.stop_accepting()
        context.scheduler.stop_accepting()
        until = time.monotonic() + settings.drain_limit
        others = threading.Thread(target=self._stop_others, args=(settings.drain_limit,), daemon=True)
        others.start()
        drained = context.scheduler.drain(0.0)
        while not drained and not cut.is_set() and time.monotonic() < until:
            drained = context.scheduler.drain(SLICE)
        context.scheduler.close()
        ended = self.http.close(_left(cut, until))
        others.join(_left(cut, until))
        closed = context.slot.close(CUT_LIMIT)
        self.after.close()
        context.log.info("stopped", drained=drained)
        return drained and ended and closed and not others.is_alive()

    def _stop_others(self, grace: float) -> None:
        if self.grpc is not None:
            self.grpc.stop(grace)
        if self.admin is not None:
            self.admin.close()
        self.watcher.stop(grace)


def start(settings: ServeSettings, log: Log) -> RunningServer:
    """Load the bundle, then serve it; when this returns, requests are accepted.

    Raises:
        UgsepError: a port is in use, the bundle is missing, damaged or fails its fixtures, or the examples, the
            folder for recordings or the admin socket are unusable. Nothing listened until then.
    """
    if settings.http_port and settings.http_port == settings.grpc_port:
        raise UgsepError(f"HTTP and gRPC are both on port {settings.http_port}; give two ports")
    with ExitStack() as undo:
        bound = bind(settings.host, settings.http_port)
        undo.callback(bound.close)
        if settings.grpc_port:
            free_port(settings.host, settings.grpc_port)
        slot = ModelSlot()
        undo.callback(slot.close, 0.0)
        after = undo.enter_context(ExitStack())
        slot.switch(load_bundle(settings))
        context = make_context(settings, slot, log, after)
        undo.callback(context.scheduler.close)
        watcher = Watcher(settings, slot, context.swaps, log, context.metrics)
        signatures = Signatures()
        app = make_app(context, signatures, page_routes(context))
        http = HttpListener(
            close_when(lambda: context.lifecycle.state == "draining", app),
            bound,
            settings.body_timeout,
            DirectInfer(context, signatures),
        )
        admin = open_admin(settings, http.port, admin_actions(watcher, lambda: status(context)), log)
        if admin is not None:
            undo.callback(admin.close)
        context.scheduler.start()
        grpc = None
        if settings.grpc_port is not None:
            grpc = start_grpc(context, signatures, settings.host, settings.grpc_port)
            undo.callback(grpc.stop, 0.0)
        http.start()
        watcher.start()
        context.lifecycle.change("ready")
        undo.pop_all()
    return RunningServer(context, watcher, http, grpc, admin, after)


def run(settings: ServeSettings, out: TextIO, err: TextIO) -> bool:
    """Serve until SIGTERM or SIGINT; call it in the main thread. Return whether every accepted request was answered.

    One line on ``out`` says when the server is ready and where; the log goes to ``err``. SIGHUP looks for a new
    bundle; a second SIGTERM or SIGINT cuts the wait for what runs.

    Raises:
        UgsepError: as in ``start``.
    """
    log, handler = make_log(err, settings.log_json, settings.slow_ms)
    with _library_logs(handler), hang_up_noted() as asked:
        server = start(settings, log)
        with received_signals() as received:  # at once: requests are accepted, and SIGTERM would lose them
            # What is loaded lives as long as the process: out of the collector's sight, it does not lengthen the full
            # collections, for which every request would wait.
            gc.collect()
            gc.freeze()
            sys.setswitchinterval(SWITCH_SECONDS)
            _announce(server, out)
            if asked.is_set():
                server.watcher.poke()
            while received() == signal.SIGHUP:
                log.info("reload", reason="SIGHUP")
                server.watcher.poke()
            cut = threading.Event()
            threading.Thread(target=_cut_on_signal, args=(received, cut), daemon=True).start()
            return server.stop(cut)


def _cut_on_signal(received: Callable[[], int], cut: threading.Event) -> None:
    while received() == signal.SIGHUP:
        continue
    cut.set()


def _wait(cut: threading.Event, seconds: float) -> None:
    """Wait until cut, in slices: a signal's handler runs in this thread, and only while it is not blocked."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0 and not cut.wait(min(SLICE, left)):
        continue


def _left(cut: threading.Event, until: float) -> float:
    return CUT_LIMIT if cut.is_set() else max(CUT_LIMIT, until - time.monotonic())


def _announce(server: RunningServer, out: TextIO) -> None:
    found = server.describe()
    if server.context.settings.log_json:
        line = json.dumps({"event": "ready", **found})
    else:
        grpc = f", gRPC {found['grpc']}" if found["grpc"] else ""
        line = f"ready: {found['http']}{grpc}, model {ascii(found['model'])[1:-1]}, version {found['version']}"
    try:
        out.write(line + "\n")
        out.flush()
    except OSError as error:  # nobody reads it, or its disk is full: no reason to stop serving
        server.context.log.warning("cannot write that the server is ready, it serves", reason=error.strerror, **found)


@contextmanager
def _library_logs(handler: logging.Handler) -> Iterator[None]:
    """Write what the libraries log in our format."""
    for name in LIBRARIES:
        logging.getLogger(name).addHandler(handler)
    try:
        yield
    finally:
        for name in LIBRARIES:
            logging.getLogger(name).removeHandler(handler)
