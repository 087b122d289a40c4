"""A decoded inference request: its tensors by role, and what the reply must hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from engines.backends.contract import Array
from engines.serve.oip.signature import Input, Signature
from engines.serve.score_request import ScoreRequest
from graphs.base.errors import UgsepError

__all__ = ["MOST_ID", "Decoded", "Reply", "Tensors", "check_id", "check_reply", "raw_tensor", "seconds_of"]

#: The longest request id; it comes back in the answer.
MOST_ID = 256
_DAY = 24 * 3600 * 10**6


@dataclass(frozen=True, slots=True)
class Reply:
    """What a caller asked to get back, from the model it named.

    ``outputs`` are names with whether each is wanted in binary, or None for all of them in the form that
    ``binary`` says. ``warm_only`` asks the user graph for no output.
    """

    model: str
    id: str = ""
    outputs: tuple[tuple[str, bool], ...] | None = None
    binary: bool = False
    warm_only: bool = False

    def wanted(self, made: Mapping[str, Array]) -> list[tuple[str, Array, bool]]:
        """Return the outputs to send, in order."""
        if self.warm_only:
            return []
        if self.outputs is None:
            return [(name, value, self.binary) for name, value in made.items()]
        return [(name, made[name], binary) for name, binary in self.outputs]


class Decoded(NamedTuple):
    """A request's tensors, its timeout in seconds (0 if it brings none), and the reply it wants.

    ``users_only`` is whether it is for the user graph.
    """

    users_only: bool
    user: Mapping[str, Array]
    items: Mapping[str, Array]
    user_index: Array | None
    timeout: float
    reply: Reply

    def score_request(self, deadline: float | None) -> ScoreRequest:
        """Return what the ranker scores."""
        return ScoreRequest(self.user, self.items, self.user_index, deadline)


class Tensors:
    """Collects a request's tensors by role."""

    def __init__(self, signature: Signature, users_only: bool) -> None:
        self._signature, self._users_only = signature, users_only
        self.user: dict[str, Array] = {}
        self.items: dict[str, Array] = {}
        self.user_index: Array | None = None

    def add(self, rule: Input, value: Array) -> None:
        """Add one tensor, whose header the caller has checked.

        Raises:
            UgsepError: the request already has an input of this name.
        """
        if (
            rule.name in self.user
            or rule.name in self.items
            or (rule.role == "index" and self.user_index is not None)
        ):
            raise UgsepError(f"input '{rule.name}' is given twice; send each input once")
        if rule.role == "user":
            self.user[rule.name] = value
        elif rule.role == "item":
            self.items[rule.name] = value
        else:
            self.user_index = value

    def decoded(self, timeout: float, reply: Reply) -> Decoded:
        """Return the whole request.

        Raises:
            UgsepError: an input is missing.
        """
        given = len(self.user) + len(self.items)
        optional = self.user_index is not None
        if given + optional < len(self._signature.inputs):
            for rule in self._signature.inputs.values():
                needed = rule.role == "user" or (rule.role == "item" and not self._users_only)
                if needed and rule.name not in self.user and rule.name not in self.items:
                    model = self._signature.served
                    name = model.user_model if self._users_only else model.name
                    raise UgsepError(f"input '{rule.name}' is missing; GET /v2/models/{name} lists all inputs")
        return Decoded(self._users_only, self.user, self.items, self.user_index, timeout, reply)


def raw_tensor(rule: Input, buffer: bytes, elements: int, offset: int = 0) -> Array:
    """Return little-endian elements of a buffer, which holds enough of them, as a flat array.

    Raises:
        UgsepError: a boolean that is neither 0 nor 1.
    """
    if rule.dtype.kind == "b":
        raw = np.frombuffer(buffer, np.uint8, elements, offset)
        if raw.max() > 1:
            raise UgsepError(f"input '{rule.name}' has a byte of {raw.max()}; BOOL elements are 0 or 1")
        return raw.view(np.bool_)
    array = np.frombuffer(buffer, rule.dtype, elements, offset)
    return array if array.flags.aligned else array.copy()  # runtimes may use loads that fault on unaligned addresses


def check_id(given: str) -> str:
    """Return a request's id.

    Raises:
        UgsepError: it is too long, or holds control characters.
    """
    if not given.isprintable():
        raise UgsepError("the request's id holds control characters; send printable text")
    if len(given) > MOST_ID:
        raise UgsepError(f"the request's id has {len(given)} characters; send at most {MOST_ID}")
    return given


def check_reply(reply: Reply, signature: Signature, users_only: bool) -> None:
    """Check what a caller wants back.

    Raises:
        UgsepError: an output asked for twice, or ``warm_only`` for scores or beside outputs.
    """
    names = [name for name, _ in reply.outputs or ()]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UgsepError(f"output '{twice}' is asked for twice; ask for each output once")
    if reply.warm_only and not users_only:
        raise UgsepError(f"warm_only is for model '{signature.served.user_model}'; scores are always returned")
    if reply.warm_only and names:
        raise UgsepError("warm_only returns no outputs; leave out one or the other")


def seconds_of(timeout: int) -> float:
    """Return a timeout given in microseconds, in seconds.

    Raises:
        UgsepError: it is negative or longer than a day.
    """
    if not 0 <= timeout <= _DAY:
        raise UgsepError(f"timeout must be 0 (none) to {_DAY} microseconds")
    return timeout / 1e6
