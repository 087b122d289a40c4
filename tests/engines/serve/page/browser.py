"""A headless Chromium that is driven over a pipe with its DevTools protocol: no driver, no socket, no package."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
#: Starts a program with the two ends of the pipes at the descriptors 3 and 4, where Chromium looks for them.
LAUNCH = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execv(sys.argv[3], sys.argv[3:])"
)
OPTIONS = (
    "--headless",
    "--remote-debugging-pipe",
    "--no-sandbox",  # containers run as root
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-extensions",
    "--no-first-run",
    "--no-proxy-server",
)
PATIENCE = 30.0  # seconds; a busy machine starts Chromium in a few


class Browser:
    """One Chromium process with one page; a context manager."""

    def __init__(self) -> None:
        assert CHROMIUM is not None
        self._folder = tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True)
        there, self._out = (_high(fd) for fd in os.pipe())
        self._in, back = (_high(fd) for fd in os.pipe())
        command = [sys.executable, "-c", LAUNCH, str(there), str(back), CHROMIUM, *OPTIONS]
        self._process = subprocess.Popen(
            [*command, f"--user-data-dir={self._folder.name}", "about:blank"],
            pass_fds=(there, back),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(there)
        os.close(back)
        self._number, self._target = 0, ""
        self._answers: queue.Queue[dict[str, Any]] = queue.Queue()
        self.events: list[dict[str, Any]] = []
        threading.Thread(target=self._read, daemon=True).start()
        page = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._target = self.call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # it may be gone already
            os.write(self._out, b'{"id": 0, "method": "Browser.close"}\0')
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._out)
        self._folder.cleanup()

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send one command and return its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._target:
            message["sessionId"] = self._target
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._answers.get(timeout=PATIENCE)
            if answer["id"] == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return dict(answer["result"])

    def open(self, url: str, width: int = 1440, height: int = 1000, dark: bool = False) -> None:
        """Load a page in a window of this size, and forget the events of the page before."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.events.clear()
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete'")

    def js(self, expression: str) -> Any:
        """Return the value of an expression in the page; a promise is awaited."""
        done = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def wait(self, expression: str, seconds: float = PATIENCE) -> Any:
        """Return the value of an expression as soon as it is true."""
        until = time.monotonic() + seconds
        while not (value := self.js(expression)):
            assert time.monotonic() < until, f"never true: {expression}\n{self.text()[:3000]}"
            time.sleep(0.05)
        return value

    def text(self, selector: str = "body") -> str:
        """Return the visible text of an element, with single spaces."""
        return " ".join(str(self.js(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''")).split())

    def press(self, key: str, code: int) -> None:
        """Press and release a key."""
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)

    def screenshot(self, path: Path, whole: bool = True) -> None:
        """Write a PNG of the page."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", captureBeyondViewport=whole)["data"]))

    def complaints(self) -> list[str]:
        """Return console errors and warnings, uncaught exceptions, and what the browser logged."""
        picked: dict[str, Callable[[dict[str, Any]], str | None]] = {
            "Runtime.exceptionThrown": lambda p: json.dumps(p["exceptionDetails"]),
            "Runtime.consoleAPICalled": lambda p: (
                json.dumps(p["args"]) if p["type"] in ("error", "warning") else None
            ),
            "Log.entryAdded": lambda p: f"{p['entry']['level']}: {p['entry']['text']} {p['entry'].get('url', '')}",
        }
        found = [picked[e["method"]](e["params"]) for e in list(self.events) if e["method"] in picked]
        return [text for text in found if text is not None]

    def requested(self) -> list[str]:
        """Return the addresses that the page asked for."""
        return [
            e["params"]["request"]["url"] for e in list(self.events) if e["method"] == "Network.requestWillBeSent"
        ]

    def _read(self) -> None:
        rest = b""
        while data := os.read(self._in, 1 << 16):
            *messages, rest = (rest + data).split(b"\0")
            for message in map(json.loads, messages):
                if "id" in message:
                    self._answers.put(message)
                else:
                    self.events.append(message)
        os.close(self._in)


def _high(descriptor: int) -> int:
    """Move a descriptor out of the way of 3 and 4."""
    moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD, 10)
    os.close(descriptor)
    return moved
