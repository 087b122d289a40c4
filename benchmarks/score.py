"""``python -m benchmarks.score --bundle DIR``: time to load a bundle, and overhead of ``Ranker.score``.

The noise of a request that takes milliseconds would hide microseconds. So each engine runs once and is then replaced
by a stand-in that replays its output; what remains is the checks, the user-state cache and the copies.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numpy as np

from engines.backends.contract import Array
from engines.bundle.bundle import Bundle
from engines.bundle.manifest import engine_for
from engines.cli.group import Command
from engines.serve.ranker import Ranker
from engines.verify.checks import Check
from graphs.base.errors import GateFailed

LOAD_SECONDS, ADDED_MICROSECONDS = 2.0, 100.0
_USERS = 50


@dataclass(frozen=True)
class ScoreCost:
    """Seconds to load the bundle a second time, and p50 overhead of ``score`` in microseconds, user cached or not."""

    candidates: int
    load_seconds: float
    cached_us: float
    computed_us: float

    def checks(self) -> list[Check]:
        """Return the figures against their bounds."""
        return [
            Check("second load of the bundle, seconds", self.load_seconds, LOAD_SECONDS),
            Check("overhead of score, user cached, microseconds", self.cached_us, ADDED_MICROSECONDS),
            Check("overhead of score, user computed, microseconds", self.computed_us, ADDED_MICROSECONDS),
        ]


class Repeats:
    """A runner that replays an output the engine computed earlier."""

    def __init__(self, output: Mapping[str, Array]) -> None:
        self.output = dict(output)

    def infer(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Return the output, whatever the input."""
        del feeds
        return dict(self.output)

    def close(self) -> None:
        """Drop the output."""
        self.output.clear()


def measure_scoring(bundle: Path, candidates: int, rounds: int) -> ScoreCost:
    """Load a bundle twice and time the second load; then time ``score`` around stand-ins that take no time.

    Raises:
        UgsepError: the bundle does not exist, or this machine cannot run its engines.
    """
    Ranker.from_bundle(bundle).close()
    started = time.perf_counter()
    ranker = Ranker.from_bundle(bundle)
    seconds = time.perf_counter() - started
    opened = Bundle.open(bundle)
    requests = list(opened.synthetic_requests(_USERS, candidates))
    items = requests[0].items
    scores = ranker.score(requests[0].user, items)
    state = ranker.user_state(requests[0].user)
    ranker.close()
    manifest = opened.manifest
    user, item = engine_for(manifest, "user").built, engine_for(manifest, "item").built
    empty = Ranker(Repeats(state), Repeats(scores), user, item, vocabularies=manifest.vocabularies)
    times: dict[str, list[float]] = {"computed": [], "cached": []}
    for _ in range(rounds):
        empty.forget_users()
        for kind in times:
            for request in requests:
                began = time.perf_counter()
                empty.score(request.user, items)
                times[kind].append((time.perf_counter() - began) * 1e6)
    return ScoreCost(candidates, seconds, float(np.median(times["cached"])), float(np.median(times["computed"])))


@click.command(cls=Command)
@click.option("--bundle", type=click.Path(path_type=Path), required=True, help="A finished bundle.")
@click.option("--candidates", type=click.IntRange(min=1), default=256, show_default=True, help="Items per request.")
@click.option("--rounds", type=click.IntRange(min=1), default=20, show_default=True, help=f"Of {_USERS} requests.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def main(bundle: Path, candidates: int, rounds: int, as_json: bool) -> None:
    """Time loading a bundle and the overhead of ``Ranker.score`` over its engines."""
    cost = measure_scoring(bundle, candidates, rounds)
    if as_json:
        click.echo(json.dumps(asdict(cost)))
    else:
        for check in cost.checks():
            click.echo(str(check))
    missed = [str(check) for check in cost.checks() if not check.passed]
    if missed:
        raise GateFailed("; ".join(missed))


if __name__ == "__main__":
    main()
