"""A pool of requests with the scores that each version of the model must give."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from benchmarks.serving.load.wire import Inputs, grpc_request, http_request
from engines.backends.contract import Array
from engines.bundle.bundle import Bundle
from engines.serve.ranker import Ranker

#: Any version: the references of a server that names its versions its own way.
ANY = "*"

Score = Callable[[Mapping[str, Array], Mapping[str, Array]], dict[str, Array]]


@dataclass(frozen=True)
class Entry:
    """One request: its features, what a proxy routes by, and the reference logits [N] of each task by version."""

    user: Mapping[str, Array]
    items: Mapping[str, Array]
    key: str
    expected: Mapping[str, Mapping[str, Array]]
    model: str
    raw: Mapping[bytes, bytes] = field(init=False)

    def __post_init__(self) -> None:
        joined = {
            version.encode(): b"".join(np.ascontiguousarray(v).tobytes() for v in scores.values())
            for version, scores in self.expected.items()
        }
        object.__setattr__(self, "raw", joined)

    @property
    def inputs(self) -> Inputs:
        """The tensors as they are sent."""
        return Inputs({**self.user, **self.items})

    @cached_property
    def http(self) -> bytes:
        """The whole HTTP request."""
        return http_request(self.model, self.inputs, self.key)

    @cached_property
    def grpc(self) -> bytes:
        """The serialized gRPC request."""
        return grpc_request(self.model, self.inputs)


@dataclass(frozen=True)
class Pool:
    """Requests to choose from, ``per_user`` consecutive ones of each user.

    ``tolerance`` is the largest difference of a logit that is not wrong. An answer computed alone is bit-equal to its
    reference; one computed in a batch may run on another variant of the engine, which rounds differently.
    """

    entries: tuple[Entry, ...]
    tolerance: float
    per_user: int = 1

    @property
    def users(self) -> int:
        """How many users the requests are of."""
        return len(self.entries) // self.per_user


def bundle_version(bundle: Path) -> str:
    """Return the version under which a server answers for a bundle: 12 hex digits of its manifest's sha256."""
    return hashlib.sha256((bundle / "manifest.json").read_bytes()).hexdigest()[:12]


def make_pool(
    bundles: Sequence[Path], users: int, candidates: int, *, model: str = "", per_user: int = 1, seed: int = 0
) -> Pool:
    """Return random requests of ``users`` users that fit the first bundle, scored in this process by every bundle.

    ``model`` is the name that the server gives the model, by default the bundle's own.

    Raises:
        UgsepError: not a bundle, or one whose inputs differ from those of the first.
    """
    first = Bundle.open(bundles[0])
    drawn = list(first.synthetic_requests(users * per_user, candidates, seed))
    pairs = [(drawn[i - i % per_user].user, request.items) for i, request in enumerate(drawn)]
    expected: list[dict[str, Mapping[str, Array]]] = [{} for _ in pairs]
    tolerance = 0.0
    for bundle in bundles:
        version = bundle_version(bundle)
        with Ranker.from_bundle(bundle, threads=1) as ranker:
            for (user, items), scores in zip(pairs, expected, strict=True):
                scores[version] = ranker.score(user, items)
            tolerance = max(tolerance, batch_difference(ranker, pairs[:8]))
    name = model or first.manifest.model
    entries = tuple(
        Entry(user, items, f"user-{i // per_user}", scores, name)
        for i, ((user, items), scores) in enumerate(zip(pairs, expected, strict=True))
    )
    return Pool(entries, tolerance, per_user)


def batch_difference(ranker: Ranker, pairs: Sequence[tuple[Mapping[str, Array], Mapping[str, Array]]]) -> float:
    """Return twice the largest difference of logits between scoring alone and two users in one call.

    0 if the engine takes one user per call. The variants of an int8 engine round activations with other scales.
    """
    largest = 0.0
    if not ranker.takes_index or (ranker.max_users and ranker.max_users < 2):
        return largest
    for first, second in zip(pairs[::2], pairs[1::2], strict=False):
        users = {name: np.concatenate([first[0][name], second[0][name]]) for name in first[0]}
        items = {name: np.concatenate([first[1][name], second[1][name]]) for name in first[1]}
        sizes = [len(next(iter(pair[1].values()))) for pair in (first, second)]
        if ranker.max_candidates and sum(sizes) > ranker.max_candidates:
            continue
        together = ranker.score_users(users, items, np.repeat(np.arange(2, dtype=np.int64), sizes))
        for at, pair, size in ((0, first, sizes[0]), (sizes[0], second, sizes[1])):
            for task, alone in ranker.score(*pair).items():
                largest = max(largest, float(np.abs(together[task][at : at + size] - alone).max()))
    return 2 * largest
