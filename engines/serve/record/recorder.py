"""Keep a share of the answered requests as Parquet, off the request path."""

from __future__ import annotations

import os
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from engines.backends.contract import Array
from engines.serve.record.rows import UserRows, by_user, columns_of
from engines.serve.record.shard import (
    MOST_REQUESTS,
    Shard,
    folder_bytes,
    remove_unfinished,
    require_pyarrow,
    write_whole,
)
from engines.serve.score_request import ScoreRequest
from graphs.base.errors import UgsepError

__all__ = ["RecordEvent", "Recorder"]

MIB = 1 << 20
_WAITING_BYTES, _WAITING_REQUESTS = 64 * MIB, 4096  # between the workers and the writer
_LARGEST_REQUEST = 64 * MIB  # as columns, the user repeated for every candidate: one row group in memory
_FILE_BYTES, _FILE_ROWS, _FILE_SECONDS = 16 * MIB, 1 << 20, 300.0


@dataclass(frozen=True)
class RecordEvent:
    """What happened to requests that were chosen to be kept.

    ``recorded``: they are in a whole, synced file. ``dropped``: the writer is behind, or recording has stopped.
    ``stopped``: for good, with the reason in one line; it happens once.
    """

    kind: Literal["recorded", "dropped", "stopped"]
    requests: int = 0
    reason: str = ""


class Recorder:
    """Writes a share of answered requests to files that calibration, validation and replay can read.

    A request of several users becomes one request per user. Files are closed at 16 MiB, 1,048,576 rows, after
    ``file_seconds`` and when the columns or the version change; they appear whole or not at all, so a killed process
    loses at most its last ``file_seconds``. Recording stops for good when the folder would exceed ``limit_bytes`` or
    cannot be written; serving goes on. Features are all that is kept: no routing key and no address.

    Args:
        directory: created if missing; several processes may share one.
        share: of the answered requests to keep, 0 to 1.
        limit_bytes: the most that the files of the folder may take.
        on_event: called in the writer's thread, and for a dropped request in the caller's; must not block.
        file_seconds: the longest that a request waits for its file.

    Raises:
        UgsepError: pyarrow is not installed, or the folder cannot be created or written.
    """

    def __init__(
        self,
        directory: Path,
        share: float,
        limit_bytes: int,
        on_event: Callable[[RecordEvent], None],
        *,
        file_seconds: float = _FILE_SECONDS,
    ) -> None:
        require_pyarrow()
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            remove_unfinished(directory)
            full = folder_bytes(directory) >= limit_bytes
        except OSError as error:
            raise UgsepError(f"--record '{directory}': {error.strerror}; give a folder to write to") from error
        if not os.access(directory, os.W_OK | os.X_OK):
            raise UgsepError(f"--record '{directory}': cannot be written; give a folder to write to")
        self._directory, self._share, self._limit, self._on_event = directory, share, limit_bytes, on_event
        self._file_seconds = file_seconds
        self._draw = random.Random().random
        self._changed = threading.Condition()
        self._waiting: deque[tuple[ScoreRequest, Mapping[str, Array], str, int]] = deque()
        self._waiting_bytes = 0
        self._closed = self._stopped = False
        self._thread = threading.Thread(target=self._write, name="ugsep-record", daemon=True)
        if full:
            self._stopped = True
            on_event(RecordEvent("stopped", reason=self._over_limit()))
        self._thread.start()

    def offer(self, request: ScoreRequest, scores: Mapping[str, Array], version: str) -> None:
        """Keep the request if the share says so; never blocks and never raises for what it holds.

        The arrays are not copied: nobody may write to them any more.
        """
        if self._draw() >= self._share or not request.items:
            return
        arrays = (*request.user.values(), *request.items.values(), *scores.values())
        size = sum(array.nbytes for array in arrays)
        with self._changed:
            full = self._waiting_bytes + size > _WAITING_BYTES or len(self._waiting) >= _WAITING_REQUESTS
            refused = full or self._stopped or self._closed
            if not refused:
                self._waiting.append((request, scores, version, size))
                self._waiting_bytes += size
                self._changed.notify()
        if refused:
            self._on_event(RecordEvent("dropped", 1))

    def close(self, timeout: float = 10.0) -> bool:
        """Write what waits and end the writer; return whether it ended within ``timeout`` seconds."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _write(self) -> None:
        """Run in the writer's thread until closed or stopped."""
        open_shard: list[Shard] = []  # none or one; its requests are lost if something below raises
        try:
            self._write_until_closed(open_shard)
        except Exception as error:  # whatever it is, requests are served on
            with self._changed:
                self._stopped = True
                lost = len(self._waiting) + sum(shard.requests for shard in open_shard)
                self._waiting.clear()
                self._waiting_bytes = 0
            if lost:
                self._on_event(RecordEvent("dropped", lost))
            in_folder = f" in '{self._directory}'" if isinstance(error, OSError) else ""
            reason = " ".join(f"{getattr(error, 'strerror', None) or error}{in_folder}".split())
            self._on_event(RecordEvent("stopped", reason=reason))

    def _write_until_closed(self, open_shard: list[Shard]) -> None:
        due = float("inf")  # when the open shard is to be closed, a time of time.monotonic()
        while True:
            with self._changed:
                while not self._waiting and not self._closed and time.monotonic() < due:
                    self._changed.wait(None if due == float("inf") else max(due - time.monotonic(), 0.0))
                taken = self._waiting.popleft() if self._waiting else None
                if taken is not None:
                    self._waiting_bytes -= taken[3]
                closing = self._closed and taken is None
            if taken is not None:
                for part in by_user(taken[0], taken[1]):
                    self._add(part, taken[2], open_shard)
                if open_shard and due == float("inf"):
                    due = time.monotonic() + self._file_seconds
            if open_shard and (closing or _is_full(open_shard[0]) or time.monotonic() >= due):
                self._save(open_shard)
            if not open_shard:
                due = float("inf")
            if closing:
                return

    def _add(self, part: UserRows, version: str, open_shard: list[Shard]) -> None:
        if part.bytes > _LARGEST_REQUEST:
            self._on_event(RecordEvent("dropped", 1))
            return
        columns = columns_of(part)
        if open_shard and (open_shard[0].columns, open_shard[0].version) != (columns, version):
            self._save(open_shard)  # after a hot swap
        if not open_shard:
            open_shard.append(Shard(columns, version))
        open_shard[0].add(part)

    def _save(self, open_shard: list[Shard]) -> None:
        shard = open_shard[0]
        data = shard.finish()
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)  # it may have been moved away
        if folder_bytes(self._directory) + len(data) > self._limit:
            raise UgsepError(self._over_limit())
        write_whole(self._directory / shard.name, data)
        open_shard.clear()
        self._on_event(RecordEvent("recorded", shard.requests))

    def _over_limit(self) -> str:
        return (
            f"the files in '{self._directory}' have reached the limit of {self._limit} bytes; "
            "move them away or raise --record-limit, then restart"
        )


def _is_full(shard: Shard) -> bool:
    return shard.bytes >= _FILE_BYTES or shard.rows >= _FILE_ROWS or shard.requests >= MOST_REQUESTS // 2
