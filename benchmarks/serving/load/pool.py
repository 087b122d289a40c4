"""A pool of requests with the scores that each version of the model must give."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from benchmarks.serving.load.wire import Inputs, grpc_request, http_request
from engines.backends.contract import Array
from engines.bundle.bundle import Bundle
from engines.bundle.fixtures import read_fixtures
from engines.bundle.manifest import read_manifest
from engines.serve.ranker import Ranker

#: Any version: the references of a server that names its versions its own way.
ANY = "*"

Score = Callable[[Mapping[str, Array], Mapping[str, Array]], dict[str, Array]]


@dataclass(frozen=True, repr=False)
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


@dataclass(frozen=True, repr=False)  # asyncio formats the result of a run, which takes minutes for a large pool
class Pool:
    """Requests to choose from, ``per_user`` consecutive ones of each user.

    ``tolerance`` is the largest difference of a logit that is not wrong. An answer computed alone is bit-equal to its
    reference; one computed in a batch may run on another variant of the engine, which rounds differently: an int8
    engine by thousandths of a logit.
    """

    entries: tuple[Entry, ...]
    tolerance: float
    per_user: int = 1

    @property
    def users(self) -> int:
        """How many users the requests are of."""
        return len(self.entries) // self.per_user


def bundle_version(bundle: Path) -> str:
    """Return the version under which a server answers for a bundle: the first 12 hex digits of its digest."""
    return read_manifest(bundle).short_digest


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
        # Of the fixtures: how far the bundle's engines are from themselves at most, on another variant or machine.
        tolerance = max(tolerance, *read_fixtures(bundle).tolerances.values())
    name = model or first.manifest.model
    entries = tuple(
        Entry(user, items, f"user-{i // per_user}", scores, name)
        for i, ((user, items), scores) in enumerate(zip(pairs, expected, strict=True))
    )
    return Pool(entries, tolerance, per_user)
