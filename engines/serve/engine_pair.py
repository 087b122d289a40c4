"""A user engine and an item engine of one model: what they take, their limits, and their calls."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import cast

import numpy as np

from engines.backends.built_engine import BuiltEngine
from engines.backends.contract import Array, DeviceArray, DeviceRunner, Runner
from engines.serve.feature_checks import FeatureChecks, check_array
from engines.serve.state_cache import State
from graphs.base.errors import UgsepError
from graphs.base.names import USER_INDEX, USER_ROWS

__all__ = ["EnginePair", "first_bad_score"]


class EnginePair:
    """Both loaded engines; thread-safe as the runners are.

    ``max_candidates`` and ``max_users`` are the most rows of a call, 0 for no limit. ``joins_users``: whether cached
    states of several users can be put together for one item call.
    """

    def __init__(
        self,
        user: Runner,
        item: Runner,
        user_built: BuiltEngine,
        item_built: BuiltEngine,
        vocabularies: Mapping[str, int] | None = None,
    ) -> None:
        self.user_runner, self.item_runner = user, item
        state_names = tuple(o.name for o in user_built.outputs)
        missing = [n for n in state_names if n not in {i.name for i in item_built.inputs}]
        if missing:
            raise UgsepError(
                f"item engine has no input for state '{missing[0]}'; the engines are of different models"
            )
        engine_only = {*state_names, USER_INDEX}
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
        self.device = _on_one_device(user, item)
        # States on a device have no rows that the host can take apart or put together without copying them back.
        rowed = all(o.shape and isinstance(o.shape[0], str) for o in user_built.outputs)
        self.joins_users = self.takes_index and rowed and self.device is None
        self.user_checks = FeatureChecks("user", self.user_inputs, vocabularies or {})
        self.item_checks = FeatureChecks("item", self.item_inputs, vocabularies or {})
        self._loaded = ExitStack()
        self._loaded.callback(item.close)
        self._loaded.callback(user.close)

    def one_user_index(self, rows: int) -> dict[str, Array]:
        """Return the item engine's input that assigns all ``rows`` candidates to one user.

        It has one row if the engine broadcasts it, else one per candidate; an engine for a single user has no such
        input.
        """
        return {USER_INDEX: np.zeros(1 if self.broadcasts else rows, np.int64)} if self.takes_index else {}

    def check_items(self, items: Mapping[str, Array]) -> int:
        """Return the number of candidates after checking their features.

        Raises:
            UgsepError: as in ``FeatureChecks.rows``, or more than the engine's profile allows.
        """
        rows = self.item_checks.rows(items)
        if self.max_candidates and rows > self.max_candidates:
            raise UgsepError(
                f"{rows} candidates, but the item engine accepts at most {self.max_candidates}; score them in "
                "batches or build with a larger serving.max_candidates"
            )
        return rows

    def check_count(self, count: int) -> None:
        """Reject more users than one item call takes.

        Raises:
            UgsepError: with the limit.
        """
        if self.max_users and count > self.max_users:
            raise UgsepError(
                f"{count} users, but the engines accept at most {self.max_users}; score them in batches or build "
                "with a larger serving.max_users"
            )

    def check_index(self, index: object, candidates: int, users: int) -> Array:
        """Return ``user_index`` after checking it.

        Raises:
            UgsepError: not int64 [candidates], a value outside [0, users), or an engine for single users.
        """
        if not self.takes_index and users > 1:
            raise UgsepError("the item engine serves one user per call; build it for several users")
        check_array("item", USER_INDEX, index)
        found = cast(Array, index)
        if found.shape != (candidates,) or found.dtype != np.int64:
            got = f"{found.dtype.name}{list(found.shape)}"
            raise UgsepError(f"user_index is {got}; give int64[{candidates}], one row of users per candidate")
        if found.min() < 0 or found.max() >= users:
            raise UgsepError(f"user_index ranges from {found.min()} to {found.max()}; must be in 0 to {users - 1}")
        return found

    def run_user(self, users: Mapping[str, Array]) -> State:
        """Return the states of all rows; they stay on the device that both engines share, if there is one."""
        if self.device is not None:
            return dict(self.device[0].infer_on_device(users))
        return dict(self.user_runner.infer(users))

    def run_item(self, items: Mapping[str, Array], state: State, index: Mapping[str, Array]) -> dict[str, Array]:
        """Return the logits of every task, float32, not checked to be finite."""
        given: dict[str, Array | DeviceArray] = {**items, **state, **index}
        if self.device is not None:
            scores = self.device[1].infer(given)
        else:
            scores = self.item_runner.infer(cast(dict[str, Array], given))  # no device: every state is an array
        return {task: logits.astype(np.float32, copy=False) for task, logits in scores.items()}

    def close(self) -> None:
        """Release both engines; does nothing the second time."""
        self._loaded.close()


def first_bad_score(scores: Mapping[str, Array]) -> UgsepError | None:
    """Return an error if a logit is not finite: finite features can overflow inside the model; NaN has no rank."""
    for task, logits in scores.items():
        if not np.isfinite(logits).all():
            row = int(np.flatnonzero(~np.isfinite(logits))[0])
            return UgsepError(
                f"task '{task}': the score of candidate {row} is {logits[row]}; its features are finite but "
                "overflow inside the model; clean or clip them"
            )
    return None


def _on_one_device(user: Runner, item: Runner) -> tuple[DeviceRunner, DeviceRunner] | None:
    """Return both runners if the item engine can read the user engine's outputs on the device."""
    if isinstance(user, DeviceRunner) and isinstance(item, DeviceRunner) and user.memory == item.memory:
        return user, item
    return None
