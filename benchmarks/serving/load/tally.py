"""What became of every request that was sent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.serving.load.pool import ANY, Entry, Pool
from benchmarks.serving.load.wire import http_outputs
from engines.backends.contract import Array
from graphs.base.errors import UgsepError

#: Codes of requests without an answer: the connection broke, or the run ended first.
BROKEN, UNANSWERED = 0, -1
_VERSION = b'"model_version":"'
_MOST_MESSAGES = 8


@dataclass(repr=False)
class Tally:
    """Every request of a run, in the order their answers came.

    Times are those of ``time.perf_counter()``: when the request was due, when it was written, when its answer was
    whole. ``exact`` counts answers bit-equal to their reference, ``close`` those within the tolerance, ``wrong`` the
    others; ``messages`` has some of the errors.
    """

    pool: Pool
    due: list[float] = field(default_factory=list)
    sent: list[float] = field(default_factory=list)
    done: list[float] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)
    exact: int = 0
    close: int = 0
    wrong: int = 0
    planned: int = 0
    no_retry_after: int = 0
    largest_difference: float = 0.0
    versions: Counter[str] = field(default_factory=Counter)
    messages: list[str] = field(default_factory=list)

    def add(self, code: int, due: float, sent: float, done: float) -> None:
        """Count one request."""
        self.codes.append(code)
        self.due.append(due)
        self.sent.append(sent)
        self.done.append(done)

    def say(self, message: str) -> None:
        """Keep an error message, if there are few yet."""
        if len(self.messages) < _MOST_MESSAGES and message not in self.messages:
            self.messages.append(message)

    def check_http(self, entry: Entry, head: bytes, body: bytes) -> None:
        """Compare an answer with the reference of the version it names."""
        at = body.find(_VERSION)
        version = body[at + len(_VERSION) : body.find(b'"', at + len(_VERSION))] if at >= 0 else b""
        raw = entry.raw.get(version)
        if raw is not None and body.endswith(raw):
            self.exact += 1
            self.versions[version.decode()] += 1
            return
        try:
            found, outputs = http_outputs(parsed_head(head), body)
        except UgsepError as error:
            self.wrong += 1
            self.say(str(error))
            return
        self.check(entry, found, outputs)

    def check(self, entry: Entry, version: str, outputs: Mapping[str, Array]) -> None:
        """Compare decoded outputs with the reference of a version."""
        expected = entry.expected.get(version, entry.expected.get(ANY))
        self.versions[version] += 1
        if expected is None or set(expected) != set(outputs):
            self.wrong += 1
            self.say(f"an answer of version '{version}' with outputs {', '.join(outputs)}; no reference has these")
            return
        worst = 0.0
        for task, reference in expected.items():
            given = outputs[task]
            sound = given.shape == reference.shape and bool(np.isfinite(given).all())
            worst = max(worst, float(np.abs(given - reference).max()) if sound else float("inf"))
        if worst == 0.0:
            self.exact += 1
        elif worst <= self.pool.tolerance:
            self.close += 1
        else:
            self.wrong += 1
            self.say(f"a score is off by {worst:.3g} from the reference of version '{version}'")
        self.largest_difference = max(self.largest_difference, worst)

    def count(self, *codes: int) -> int:
        """Return how many requests ended with one of these codes."""
        return sum(code in codes for code in self.codes)

    @property
    def lost(self) -> int:
        """How many requests got no answer."""
        return self.count(BROKEN, UNANSWERED) + self.planned - len(self.codes)

    @property
    def seconds(self) -> float:
        """The time from the first request that was due to the last answer."""
        return max(self.done) - min(self.due) if self.done else 0.0

    def milliseconds(self, code: int = 200, *, from_sent: bool = False) -> NDArray[np.float64]:
        """Return the latencies of the requests with a code, from when they were due: a late start counts."""
        starts = self.sent if from_sent else self.due
        picked = [
            (done - start) * 1e3 for done, start, c in zip(self.done, starts, self.codes, strict=True) if c == code
        ]
        return np.asarray(picked, np.float64)

    def summary(self) -> dict[str, Any]:
        """Return the counts, the rate of right answers per second and the latencies, for a result file."""
        by_code = Counter(self.codes)
        return {
            "requests": self.planned,
            "codes": {str(code): by_code[code] for code in sorted(by_code)},
            "lost": self.lost,
            "exact": self.exact,
            "within_tolerance": self.close,
            "wrong": self.wrong,
            "largest_difference": self.largest_difference,
            "tolerance": self.pool.tolerance,
            "seconds": round(self.seconds, 3),
            "per_second": round(self.count(200) / self.seconds, 2) if self.seconds else 0.0,
            "ms": percentiles(self.milliseconds()),
            "refused_ms": percentiles(self.milliseconds(429, from_sent=True)),
            "versions": dict(sorted(self.versions.items())),
            "messages": self.messages,
        }


def percentiles(ms: NDArray[np.float64]) -> dict[str, float]:
    """Return the usual percentiles of latencies, and how many there are; only the count if there are none."""
    found = {"count": float(len(ms))}
    if len(ms):
        found |= {f"p{q:g}": round(float(np.percentile(ms, q)), 4) for q in (50, 90, 99, 99.9)}
        found["max"] = round(float(ms.max()), 4)
    return found


def parsed_head(head: bytes) -> dict[str, str]:
    """Return the headers of an HTTP answer, names in lower case."""
    lines = head.decode("latin-1").split("\r\n")[1:]
    pairs = (line.partition(":") for line in lines if ":" in line)
    return {name.strip().lower(): value.strip() for name, _, value in pairs}
