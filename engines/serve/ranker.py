"""The runtime: score a user's candidates with the engines of a bundle, computing each user once."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import numpy as np

from engines.backends.built_engine import BuiltEngine
from engines.backends.contract import Array, Runner
from engines.bundle.files import verify_files
from engines.bundle.load import load_engine
from engines.bundle.manifest import Engine, Manifest, engine_for, read_manifest
from engines.serve.batched_scoring import score_requests
from engines.serve.deadlines import check_deadline
from engines.serve.engine_pair import EnginePair, first_bad_score
from engines.serve.forks import keep_in_children
from engines.serve.open_calls import OpenCalls
from engines.serve.score_request import Scored, ScoreRequest, Warmed
from engines.serve.state_cache import CacheInfo, State, StateCache
from engines.serve.user_states import Wanted, find_state, find_states, keyed_users
from graphs.base.errors import UgsepError

DEFAULT_CACHE_BYTES = 64 << 20


class Ranker:
    """Scores candidates with a user engine and an item engine; thread-safe.

    The states of recent users are cached up to ``cache_bytes``, least recently used evicted first. They stay on the
    device if both engines share one, so that a state never passes through the host. As a context manager, it closes
    on exit. ``user_engine_digest`` identifies the user engine's content, empty if it was not loaded from a bundle.

    A ``deadline`` is a time of ``time.monotonic()``; it is checked before the user graph, before the item graph, and
    while another thread computes the same user. An engine call that runs is not interrupted.
    """

    def __init__(
        self,
        user: Runner,
        item: Runner,
        user_built: BuiltEngine,
        item_built: BuiltEngine,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
        vocabularies: Mapping[str, int] | None = None,
        user_engine_digest: str = "",
    ) -> None:
        pair = EnginePair(user, item, user_built, item_built, vocabularies)
        self.user_runner, self.item_runner = user, item
        self.user_inputs, self.item_inputs = pair.user_inputs, pair.item_inputs
        self.takes_index, self.broadcasts, self.outputs = pair.takes_index, pair.broadcasts, pair.outputs
        self.max_candidates, self.max_users = pair.max_candidates, pair.max_users
        self.user_engine_digest = user_engine_digest
        self._pair, self._cache, self._calls = pair, StateCache(cache_bytes), OpenCalls()
        keep_in_children(pair)

    @classmethod
    def from_bundle(
        cls,
        directory: str | Path,
        *,
        backend: str | None = None,
        precision: str | None = None,
        threads: int | None = None,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
        runtime_cache: str | Path | None = None,
        digest: str | None = None,
    ) -> Self:
        """Load the bundle's chosen engines, or those of one backend and precision, after checking their hashes.

        Only the files that are loaded are hashed; ``ugsep verify`` checks the whole bundle. ``threads`` overrides the
        pinned intra-op thread count. ``runtime_cache`` is a folder outside the bundle where a backend that compiles
        kernels while serving (tensorrt-rtx) stores them for the next process. ``digest`` pins the bundle: the 64 hex
        digits that ``ugsep verify --print-digest`` prints of it; another bundle is refused.

        Raises:
            UgsepError: not a bundle, not the pinned one, a modified or truncated file, an invalid setting, or an
                engine that this machine cannot run.
        """
        for name, value, least in (("threads", threads, 1), ("cache_bytes", cache_bytes, 0)):
            if value is not None and (type(value) is not int or value < least):
                raise UgsepError(f"{name} is {value!r}; must be an integer >= {least}")
        root = Path(directory)
        manifest = read_manifest(root, digest)
        pair = [engine_for(manifest, side, backend, precision) for side in ("user", "item")]
        needed = {f"{e.directory}/{name}" for e in pair for name in e.built.files}
        verify_files(root, {k: manifest.files[k] for k in sorted(needed)}, manifest.rebuild)
        kernels = Path(runtime_cache) if runtime_cache is not None else None
        return cls.from_engines(root, manifest, pair[0], pair[1], threads, cache_bytes, kernels)

    @classmethod
    def from_engines(
        cls,
        root: Path,
        manifest: Manifest,
        user: Engine,
        item: Engine,
        threads: int | None = None,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
        runtime_cache: Path | None = None,
    ) -> Self:
        """Load two engines whose files were already checked.

        Raises:
            UgsepError: as in ``from_bundle``; nothing stays loaded.
        """
        with ExitStack() as loaded:
            user_runner = load_engine(root, manifest, user, threads, runtime_cache)
            loaded.callback(user_runner.close)
            item_runner = load_engine(root, manifest, item, threads, runtime_cache)
            loaded.callback(item_runner.close)
            digest = _engine_digest(manifest, user)
            ranker = cls(user_runner, item_runner, user.built, item.built, cache_bytes, manifest.vocabularies, digest)
            loaded.pop_all()
        return ranker

    def score(
        self, user: Mapping[str, Array], items: Mapping[str, Array], *, deadline: float | None = None
    ) -> dict[str, Array]:
        """Return the logits of every task, float32 [N], for one user's N candidates.

        Args:
            user: user features by name, one row each ([1, ...]).
            items: item and cross features by name, N rows each ([N, ...]).
            deadline: when the caller stops waiting.

        Raises:
            UgsepError: a missing or unknown feature, a wrong dtype or shape, differing numbers of rows, no rows, more
                rows than the engine's profile allows, a non-finite feature or logit, or an id outside its table.
            DeadlineExceeded: the deadline passed before the scores were ready.
            RankerClosed: the ranker was closed before the call.
        """
        with self._calls:
            pair = self._pair
            rows = pair.check_items(items)
            state, _ = find_state(pair, self._cache, user, deadline)
            check_deadline(deadline, "the item graph could run")
            scores = pair.run_item(items, state, pair.one_user_index(rows))
        wrong = first_bad_score(scores)
        if wrong is not None:
            raise wrong
        return scores

    def score_users(
        self, users: Mapping[str, Array], items: Mapping[str, Array], user_index: Array
    ) -> dict[str, Array]:
        """Return the logits, float32 [N], for candidates of several users in one item call.

        ``users`` has U rows; ``user_index`` int64 [N] has each candidate's row of ``users``. States of known users
        come from the cache, except on a device.

        Raises:
            UgsepError: as in ``score``, an index outside [0, U), or an engine built for single users.
            RankerClosed: the ranker was closed before the call.
        """
        if not self.takes_index:
            raise UgsepError("the item engine serves one user per call; build it for several users")
        index: Array | None = user_index
        if index is None:  # a caller without type checks, which a request for one user would let pass
            raise UgsepError("user_index is None; give each candidate's row of the users, int64 [N]")
        (result,) = self.score_requests([ScoreRequest(users, items, index)])
        if isinstance(result, UgsepError):
            raise result
        return result.scores

    def score_requests(self, requests: Sequence[ScoreRequest]) -> list[Scored | UgsepError]:
        """Return each request's scores, or the error that is its own, in order.

        All users that are not in the cache run in one user call, all candidates in one item call, cut only where the
        engines' profiles end. A user that several requests share is computed once. On a device, or with an item
        engine for single users, requests run one by one. The scores are those of one call per request, up to the
        rounding of the engine that serves several users instead of one.

        Raises:
            RankerClosed: the ranker was closed before the call.
        """
        with self._calls:
            return score_requests(self._pair, self._cache, requests)

    def one_user_index(self, rows: int) -> dict[str, Array]:
        """Return the item engine's input that assigns all ``rows`` candidates to one user.

        It has one row if the engine broadcasts it, else one per candidate; an engine for a single user has no such
        input.
        """
        return self._pair.one_user_index(rows)

    def user_state(self, user: Mapping[str, Array]) -> dict[str, Array]:
        """Return one user's state, from the cache if the same features were seen before.

        The arrays are read-only, because they may belong to the cache.

        Raises:
            UgsepError: as in ``score``.
            RankerClosed: the ranker was closed before the call.
        """
        with self._calls:
            return _on_host(find_state(self._pair, self._cache, user, None)[0])

    def warm(self, users: Mapping[str, Array], deadline: float | None = None) -> Warmed:
        """Compute and cache the states of U users ([U, ...] each) that are not cached, and return all of them.

        Raises:
            UgsepError: as in ``score``; the first user with an error raises it, the others are cached.
            DeadlineExceeded: the deadline passed before the states were ready.
            RankerClosed: the ranker was closed before the call.
        """
        with self._calls:
            given = keyed_users(self._pair, users, one_call=False)
            keys = [key for key, _ in given]
            wanted = {key: Wanted(user, deadline) for key, user in given}
            resolved = find_states(self._pair, self._cache, wanted, keys)
            for key in keys:
                if key in resolved.errors:
                    raise resolved.errors[key]
            states = [_on_host(resolved.states[key]) for key in keys]
        joined = {name: np.concatenate([state[name] for state in states]) for name in states[0]}
        return Warmed(joined, len(keys) - len(resolved.missed), len(resolved.missed), resolved.seconds)

    def recent_users(self, limit: int) -> list[Mapping[str, Array]]:
        """Return the features of at most ``limit`` cached users, one row each, the most recently used first.

        Raises:
            RankerClosed: in a child of ``os.fork``, where a lock of the cache may be held for ever.
        """
        self._calls.refuse_forks()
        recent = [entry.user for _, entry in self._cache.entries()[: max(0, limit)]]
        return [{name: value.copy() for name, value in user.items()} for user in recent]

    def adopt_states(self, other: Ranker) -> int:
        """Cache the states of another ranker too, if both run the same user engine, and return their number.

        The most recently used ones are taken if not all fit. States on a device belong to the runner that made them
        and are not taken.

        Raises:
            RankerClosed: in a child of ``os.fork``.
        """
        self._calls.refuse_forks()
        other._calls.refuse_forks()
        same = self.user_engine_digest and self.user_engine_digest == other.user_engine_digest
        if not same or self._pair.device is not None or other._pair.device is not None:
            return 0
        return self._cache.adopt(other._cache)

    def cache_info(self) -> CacheInfo:
        """Return the counters of the user-state cache.

        Raises:
            RankerClosed: in a child of ``os.fork``.
        """
        self._calls.refuse_forks()
        return self._cache.info()

    def reset_cache_info(self) -> None:
        """Count hits, misses and evictions from 0 again; what is cached stays.

        Raises:
            RankerClosed: in a child of ``os.fork``.
        """
        self._calls.refuse_forks()
        self._cache.reset_counters()

    def forget_users(self) -> None:
        """Empty the user-state cache, for example if the meaning of a feature changes.

        Raises:
            RankerClosed: in a child of ``os.fork``.
        """
        self._calls.refuse_forks()
        self._cache.clear()

    def close(self, timeout: float | None = None) -> None:
        """Refuse new calls, wait for those that run, and release both engines; does nothing the second time.

        In a child of ``os.fork`` it does nothing: the engines belong to the parent.

        Raises:
            UgsepError: calls still run after ``timeout`` seconds. The ranker stays closed to new calls; its engines
                are released by the next ``close`` that waits long enough.
        """
        if self._calls.forked:
            return
        running = self._calls.close(timeout)
        if running:
            raise UgsepError(
                f"calls still running after {timeout:g} s: {running}; close again to release the engines"
            )
        self._pair.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _on_host(state: State) -> dict[str, Array]:
    return {name: value if isinstance(value, np.ndarray) else value.numpy() for name, value in state.items()}


def _engine_digest(manifest: Manifest, engine: Engine) -> str:
    """Return a digest of all that decides what an engine computes: its files, settings, inputs and outputs.

    It is empty for a manifest that is not complete, as during a build.
    """
    built = engine.built
    paths = [f"{engine.directory}/{name}" for name in built.files]
    if not all(path in manifest.files for path in paths):
        return ""
    files = [(name, manifest.files[path].sha256) for name, path in zip(built.files, paths, strict=True)]
    settings = (built.backend, built.precision, sorted(built.session.items()), built.inputs, built.outputs)
    return hashlib.sha256(repr((files, settings)).encode()).hexdigest()
