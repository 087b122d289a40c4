"""The fixtures of a bundle: a few requests with the logits of its engines, which every server replays first."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from engines.backends.contract import Array
from engines.bundle.fixture_file import Fixture, Fixtures, load_fixtures, save_fixtures
from engines.bundle.fixtures import FIXTURES
from engines.bundle.manifest import Manifest, engine_for
from engines.serve.core.replay import FixtureResult, replay, score_alone, score_request
from engines.serve.ranker import Ranker
from engines.verify.checks import Check
from engines.verify.scores import Scores
from quant.requests.spec import Request

FEW = 4
USERS = 3
#: Features of the largest request; a request of 2048 candidates with 1000 numbers each would outweigh a small model.
MOST_BYTES = 1 << 19
#: FP32 sums of a few hundred terms in another order, relative to the largest logit (as in the gate on exports).
FP32_ROUNDING = 1e-5


def write_fixtures(
    bundle: Path, manifest: Manifest, requests: Sequence[Request], reference: Scores, sizes: Sequence[int]
) -> Check:
    """Write the fixtures into a bundle, read them back, and return the check that newly loaded engines repeat them.

    Args:
        bundle: the directory of the bundle, with the engines that ``manifest`` chose.
        manifest: the manifest, whose files need not be known yet.
        requests: held-out requests to take rows from.
        reference: their FP32 logits.
        sizes: the request sizes that the recipe measures.

    Raises:
        UgsepError: the engines cannot be loaded or refuse a request.
    """
    user, item = engine_for(manifest, "user"), engine_for(manifest, "item")
    with Ranker.from_engines(bundle, manifest, user, item) as ranker:
        fixtures = make_fixtures(ranker, requests, reference, max(sizes), exact=_is_exact(manifest))
    save_fixtures(bundle, FIXTURES, fixtures)
    again = load_fixtures(bundle, FIXTURES, "report this as a bug of ugsep")
    with Ranker.from_engines(bundle, manifest, user, item) as ranker:
        return fixture_check(replay(again, partial(score_alone, ranker)))


def fixture_check(result: FixtureResult) -> Check:
    """Return the gate on replayed fixtures; if it fails, its name says which fixture and task."""
    failed = f" ({result.worst})" if result.worst is not None and not result.passed else ""
    return Check(f"fixtures, max |difference| over tolerance{failed}", result.ratio, 1.0)


def make_fixtures(
    ranker: Ranker, requests: Sequence[Request], reference: Scores, largest: int, *, exact: bool
) -> Fixtures:
    """Return requests that exercise a server, with the ranker's logits.

    They are a single candidate, a few, the same user again (whose state is then known), ``largest`` candidates of the
    longest request (its rows repeated if there are fewer), and several users at once if the item engine takes them.
    ``exact`` says that both engines compute in FP32 with FP32 weights.

    Raises:
        UgsepError: the ranker refuses a request.
    """
    one, few = 0, min(1, len(requests) - 1)
    longest = max(range(len(requests)), key=lambda i: requests[i].candidates)
    bytes_per_row = sum(v[:1].nbytes for v in requests[longest].items.values())
    size = min(largest, ranker.max_candidates or largest, max(MOST_BYTES // max(bytes_per_row, 1), 1))
    chosen = [
        _rows_of("one-candidate", requests, reference, one, np.arange(1)),
        _rows_of("few-candidates", requests, reference, few, np.arange(min(FEW, size))),
        _rows_of("same-user", requests, reference, few, np.arange(1, min(FEW, size) + 1)),
        _rows_of("largest-size", requests, reference, longest, np.arange(size)),
    ]
    users = min(USERS, ranker.max_users or USERS, len(requests), size)
    if ranker.takes_index and users > 1:
        chosen.append(_several_users(requests, reference, users, max(min(FEW, size // users), 1)))
    scored = [dataclasses.replace(f, expected=score_alone(ranker, score_request(f))) for f in chosen]
    return Fixtures(tuple(scored), _tolerances(scored, exact))


def _rows_of(name: str, requests: Sequence[Request], reference: Scores, index: int, rows: Array) -> Fixture:
    """Return one request with the given rows of its candidates, counted round and round."""
    request = requests[index]
    kept = rows % request.candidates
    return Fixture(
        name,
        request.user,
        {k: v[kept] for k, v in request.items.items()},
        reference={k: v[kept] for k, v in reference[index].items()},
    )


def _several_users(requests: Sequence[Request], reference: Scores, users: int, each: int) -> Fixture:
    """Return a request of the first users with ``each`` candidates, the users taking turns."""
    parts = [_rows_of("", requests, reference, i, np.arange(each)) for i in range(users)]

    def in_turn(arrays: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
        stacked = {name: np.stack([a[name] for a in arrays], axis=1) for name in arrays[0]}
        return {name: v.reshape(-1, *v.shape[2:]) for name, v in stacked.items()}

    return Fixture(
        "several-users",
        {name: np.concatenate([p.user[name] for p in parts]) for name in parts[0].user},
        in_turn([p.items for p in parts]),
        np.tile(np.arange(users, dtype=np.int64), each),
        reference=in_turn([p.reference for p in parts]),
    )


def _tolerances(fixtures: Sequence[Fixture], exact: bool) -> dict[str, float]:
    """Return how far scores of a sound server may be from those of the build, by task.

    The same engine, variant and instruction set gives the same bits. Other kernels add in another order: rounding of
    FP32. If activations are rounded to int8 or FP16, that may flip roundings; each flip is as large as those behind
    the difference from the FP32 model, and the two sets of roundings, here and there, both deviate from it: twice
    that difference.
    """
    found = {}
    for task in fixtures[0].expected:
        expected = np.concatenate([f.expected[task] for f in fixtures])
        bound = FP32_ROUNDING * max(1.0, float(np.abs(expected).max()))
        if not exact:
            bound += 2 * float(np.abs(expected - np.concatenate([f.reference[task] for f in fixtures])).max())
        found[task] = bound
    return found


def _is_exact(manifest: Manifest) -> bool:
    return all(engine_for(manifest, side).built.precision == "fp32" for side in ("user", "item"))
