"""The log of a server: one line per event, as text or JSON, with nothing in it that identifies a user."""

from __future__ import annotations

import json
import logging
import math
import time
import traceback
from pathlib import Path
from typing import Any, TextIO

from engines.serve.core.job import Answer
from engines.serve.core.outcome import Outcome

__all__ = ["Log", "LogLines", "make_log"]

MOST_CHARACTERS = 2000  # of one value
_FIELDS = "ugsep_fields"


class Log:
    """Writes events with fields; thread-safe. Values may be any text: what is written is printable and one line."""

    def __init__(self, logger: logging.Logger, slow_ms: float = 0.0) -> None:
        self._logger, self._slow = logger, slow_ms / 1e3

    def info(self, event: str, **fields: object) -> None:
        """Write an event of normal operation."""
        self._logger.info(event, extra={_FIELDS: fields})

    def warning(self, event: str, **fields: object) -> None:
        """Write an event that somebody should look at."""
        self._logger.warning(event, extra={_FIELDS: fields})

    def bug(self, error: BaseException) -> None:
        """Write an exception that is our own fault: its type and where it was raised.

        Its message is left out, because it may quote a feature's value.
        """
        self._logger.error("internal error", extra={_FIELDS: _raised(error)})

    def slow(self, outcome: Outcome) -> None:
        """Write a request that took longer than the limit, with the time of each stage."""
        if not self._slow or outcome.total < self._slow:
            return
        seconds, result, served = outcome.seconds, outcome.result, outcome.served
        fields: dict[str, object] = {
            "code": outcome.code,
            "version": served.version if served is not None else "",
            "candidates": outcome.candidates,
            "total_ms": _ms(outcome.total),
            "queue_ms": _ms(seconds.queue),
            "user_ms": _ms(seconds.user),
            "item_ms": _ms(seconds.item),
            "codec_ms": _ms(outcome.codec),
        }
        if isinstance(result, Answer):
            fields |= {"user_cached": not result.misses, "batch_users": result.batch_users}
        self._logger.warning("slow request", extra={_FIELDS: fields})


class LogLines(logging.Formatter):
    """Formats records of ours and of other libraries as one line: ``TIME LEVEL event name=value``, or JSON."""

    def __init__(self, as_json: bool) -> None:
        super().__init__()
        self._as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        fields = dict(getattr(record, _FIELDS, {}))
        if record.exc_info and record.exc_info[1] is not None:
            fields |= _raised(record.exc_info[1])
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        at, level = f"{moment}.{int(record.msecs):03d}Z", record.levelname.lower()
        event = _cut(record.getMessage().rstrip())  # uvicorn ends some in a line break
        if self._as_json:
            return json.dumps({"at": at, "level": level, "event": event, **{k: _plain(v) for k, v in fields.items()}})
        shown = [f"{name}={_text(value)}" for name, value in fields.items()]
        return " ".join([at, level, json.dumps(event)[1:-1], *shown])


def make_log(stream: TextIO, as_json: bool = False, slow_ms: float = 0.0) -> tuple[Log, logging.Handler]:
    """Return a log that writes to ``stream``, and its handler, for loggers of other libraries."""
    handler = _Stream(stream)
    handler.setFormatter(LogLines(as_json))
    logger = logging.Logger("ugsep.serve")  # not in the process's tree of loggers: several servers do not mix
    logger.addHandler(handler)
    return Log(logger, slow_ms), handler


class _Stream(logging.StreamHandler[TextIO]):
    """A handler that counts the lines it could not write, instead of reporting each on a broken stream."""

    lost = 0

    def handleError(self, record: logging.LogRecord) -> None:
        self.lost += 1


def _raised(error: BaseException) -> dict[str, object]:
    where = [f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in traceback.extract_tb(error.__traceback__)]
    return {"error": type(error).__name__, "traceback": " > ".join(where)}


def _plain(value: object) -> Any:
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return _cut(str(value))


def _text(value: object) -> str:
    plain = _plain(value)
    if not isinstance(plain, str):
        return json.dumps(plain)
    quoted = json.dumps(plain)
    bare = quoted[1:-1] == plain and plain and " " not in plain and "=" not in plain
    return plain if bare else quoted


def _cut(text: str) -> str:
    return text if len(text) <= MOST_CHARACTERS else text[:MOST_CHARACTERS] + "..."


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 3)
