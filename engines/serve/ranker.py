"""The runtime: score a user's candidates with the engines of a bundle, computing each user once."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Self, cast

import numpy as np

from engines.backends.built_engine import BuiltEngine
from engines.backends.contract import Array, DeviceArray, DeviceRunner, Runner
from engines.bundle.files import verify_files
from engines.bundle.load import load_engine
from engines.bundle.manifest import Engine, Manifest, engine_for, read_manifest
from engines.serve.feature_checks import FeatureChecks, check_array
from engines.serve.state_cache import CacheInfo, State, StateCache
from graphs.base.errors import UgsepError
from graphs.base.names import USER_INDEX, USER_ROWS

DEFAULT_CACHE_BYTES = 64 << 20


class Ranker:
    """Scores candidates with a user engine and an item engine; thread-safe.

    The states of recent users are cached up to ``cache_bytes``, least recently used evicted first. They stay on the
    device if both engines share one, so that a state never passes through the host. As a context manager, it releases
    both engines on exit.
    """

    def __init__(
        self,
        user: Runner,
        item: Runner,
        user_built: BuiltEngine,
        item_built: BuiltEngine,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
        vocabularies: Mapping[str, int] | None = None,
    ) -> None:
        self.user_runner, self.item_runner = user, item
        self._state_names = tuple(o.name for o in user_built.outputs)
        missing = [n for n in self._state_names if n not in {i.name for i in item_built.inputs}]
        if missing:
            raise UgsepError(
                f"item engine has no input for state '{missing[0]}'; the engines are of different models"
            )
        engine_only = {*self._state_names, USER_INDEX}
        self.user_inputs = user_built.inputs
        self.item_inputs = tuple(i for i in item_built.inputs if i.name not in engine_only)
        index = next((i for i in item_built.inputs if i.name == USER_INDEX), None)
        self.takes_index = index is not None
        self.broadcasts = index is not None and index.shape == (USER_ROWS,)
        self.outputs = tuple(o.name for o in item_built.outputs)
        self.max_candidates = item_built.max_candidates
        self.max_users = min(
            (max(p.users.max for p in b.profiles) for b in (user_built, item_built) if b.profiles), default=0
        )
        self._device = _on_one_device(user, item)
        self._cache = StateCache(cache_bytes)
        self._user_checks = FeatureChecks("user", self.user_inputs, vocabularies or {})
        self._item_checks = FeatureChecks("item", self.item_inputs, vocabularies or {})

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
    ) -> Self:
        """Load the bundle's chosen engines, or those of one backend and precision, after checking their hashes.

        Only the files that are loaded are hashed; ``ugsep verify`` checks the whole bundle. ``threads`` overrides the
        pinned intra-op thread count. ``runtime_cache`` is a folder outside the bundle where a backend that compiles
        kernels while serving (tensorrt-rtx) stores them for the next process.

        Raises:
            UgsepError: not a bundle, a modified or truncated file, an invalid setting, or an engine that this machine
                cannot run.
        """
        for name, value, least in (("threads", threads, 1), ("cache_bytes", cache_bytes, 0)):
            if value is not None and (type(value) is not int or value < least):
                raise UgsepError(f"{name} is {value!r}; must be an integer >= {least}")
        root = Path(directory)
        manifest = read_manifest(root)
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
            ranker = cls(user_runner, item_runner, user.built, item.built, cache_bytes, manifest.vocabularies)
            loaded.pop_all()
        return ranker

    def score(self, user: Mapping[str, Array], items: Mapping[str, Array]) -> dict[str, Array]:
        """Return the logits of every task, float32 [N], for one user's N candidates.

        Args:
            user: user features by name, one row each ([1, ...]).
            items: item and cross features by name, N rows each ([N, ...]).

        Raises:
            UgsepError: a missing or unknown feature, a wrong dtype or shape, differing numbers of rows, no rows, more
                rows than the engine's profile allows, a non-finite feature or logit, or an id outside its table.
        """
        rows = self._candidates(items)
        return self._run_item(items, self._state(user), self.one_user_index(rows))

    def score_users(
        self, users: Mapping[str, Array], items: Mapping[str, Array], user_index: Array
    ) -> dict[str, Array]:
        """Return the logits, float32 [N], for candidates of several users in one item call.

        ``users`` has U rows; ``user_index`` int64 [N] has each candidate's row of ``users``.

        Raises:
            UgsepError: as in ``score``, an index outside [0, U), or an engine built for single users.
        """
        if not self.takes_index:
            raise UgsepError("the item engine serves one user per call; build it for several users")
        rows = self._candidates(items)
        count = self._user_checks.rows(users)
        if self.max_users and count > self.max_users:
            raise UgsepError(
                f"{count} users, but the engines accept at most {self.max_users}; score them in batches or build "
                "with a larger serving.max_users"
            )
        check_array("item", USER_INDEX, user_index)
        if user_index.shape != (rows,) or user_index.dtype != np.int64:
            got = f"{user_index.dtype.name}{list(user_index.shape)}"
            raise UgsepError(f"user_index is {got}; give int64[{rows}], one row of users per candidate")
        if user_index.min() < 0 or user_index.max() >= count:
            raise UgsepError(
                f"user_index ranges from {user_index.min()} to {user_index.max()}; must be in 0 to {count - 1}"
            )
        index = self.one_user_index(rows) if count == 1 else {USER_INDEX: user_index}
        return self._run_item(items, self._run_user(users), index)

    def one_user_index(self, rows: int) -> dict[str, Array]:
        """Return the item engine's input that assigns all ``rows`` candidates to one user.

        It has one row if the engine broadcasts it, else one per candidate; an engine for a single user has no such
        input.
        """
        return {USER_INDEX: np.zeros(1 if self.broadcasts else rows, np.int64)} if self.takes_index else {}

    def user_state(self, user: Mapping[str, Array]) -> dict[str, Array]:
        """Return one user's state, from the cache if the same features were seen before.

        The arrays are read-only, because they may belong to the cache.

        Raises:
            UgsepError: as in ``score``.
        """
        state = self._state(user)
        return {name: value if isinstance(value, np.ndarray) else value.numpy() for name, value in state.items()}

    def cache_info(self) -> CacheInfo:
        """Return the counters of the user-state cache."""
        return self._cache.info()

    def forget_users(self) -> None:
        """Empty the user-state cache, for example if the meaning of a feature changes."""
        self._cache.clear()

    def close(self) -> None:
        """Release both engines."""
        self.user_runner.close()
        self.item_runner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _state(self, user: Mapping[str, Array]) -> State:
        return self._cache.get(self._key(user), lambda: self._compute_state(user))

    def _compute_state(self, user: Mapping[str, Array]) -> State:
        if self._user_checks.rows(user) != 1:
            raise UgsepError("user features have several rows; give one user, or call score_users")
        state = self._run_user(user)
        for value in state.values():
            if isinstance(value, np.ndarray):
                value.flags.writeable = False  # writing to it would change later scores
        return state

    def _run_user(self, users: Mapping[str, Array]) -> State:
        if self._device is not None:
            return dict(self._device[0].infer_on_device(users))
        return dict(self.user_runner.infer(users))

    def _run_item(self, items: Mapping[str, Array], state: State, index: Mapping[str, Array]) -> dict[str, Array]:
        given: dict[str, Array | DeviceArray] = {**items, **state, **index}
        if self._device is not None:
            scores = self._device[1].infer(given)
        else:
            scores = self.item_runner.infer(cast(dict[str, Array], given))  # no device: every state is an array
        for task, logits in scores.items():
            if not np.isfinite(
                logits
            ).all():  # finite features can overflow inside the model, and a NaN must not be ranked
                row = int(np.flatnonzero(~np.isfinite(logits))[0])
                raise UgsepError(
                    f"task '{task}': the score of candidate {row} is {logits[row]}; its features are finite but "
                    "overflow inside the model; clean or clip them"
                )
        return {task: logits.astype(np.float32, copy=False) for task, logits in scores.items()}

    def _key(self, user: Mapping[str, Array]) -> bytes:
        digest = hashlib.blake2b(digest_size=16)
        for value in self._user_checks.in_order(user):
            digest.update(f"{value.dtype.str}{value.shape}".encode() + value.tobytes())
        return digest.digest()

    def _candidates(self, items: Mapping[str, Array]) -> int:
        """Return the number of candidates after checking their features."""
        rows = self._item_checks.rows(items)
        if self.max_candidates and rows > self.max_candidates:
            raise UgsepError(
                f"{rows} candidates, but the item engine accepts at most {self.max_candidates}; score them in "
                "batches or build with a larger serving.max_candidates"
            )
        return rows


def _on_one_device(user: Runner, item: Runner) -> tuple[DeviceRunner, DeviceRunner] | None:
    """Return both runners if the item engine can read the user engine's outputs on the device."""
    if isinstance(user, DeviceRunner) and isinstance(item, DeviceRunner) and user.memory == item.memory:
        return user, item
    return None
