"""How the jagged features of a TorchRec model become tensors."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from graphs.base.errors import UgsepError, nearest


@dataclass(frozen=True)
class JaggedOptions:
    """What is declared about jagged features.

    ``max_lengths`` has the most ids of a feature in a row; others have at most as many as in the example. Every row
    has exactly one id of the features of ``single``. ``outside``: embeddings are looked up elsewhere, such as in a
    parameter server, and are inputs.
    """

    max_lengths: tuple[tuple[str, int], ...] = ()
    single: tuple[str, ...] = ()
    outside: bool = False

    def check(self, features: Iterable[str]) -> None:
        """Check the options against the jagged features of a model.

        Raises:
            UgsepError: options without a jagged feature, or for an unknown one, or that contradict each other.
        """
        known, lengths = set(features), dict(self.max_lengths)
        if not known and self != JaggedOptions():
            raise UgsepError(
                "no example input is a TorchRec KeyedJaggedTensor, to which --max-lengths, --single and --embeddings "
                "apply; remove them"
            )
        for name in (*lengths, *self.single):
            if name not in known:
                raise UgsepError(f"no jagged feature '{name}'{nearest(name, known)}")
        for name, length in self.max_lengths:
            if length < 1:
                raise UgsepError(f"the most ids of '{name}' is {length}; it must be at least 1")
            if length != lengths[name]:
                raise UgsepError(f"'{name}' is given {length} and {lengths[name]} ids at most; give one number")
            if name in self.single:
                raise UgsepError(f"'{name}' has both a single id and at most {length}; give one of them")


def parse_max_lengths(text: str) -> tuple[tuple[str, int], ...]:
    """Return the pairs of ``name=number,name=number``.

    Raises:
        UgsepError: a part is not ``name=number``.
    """
    pairs = [part.strip().rpartition("=") for part in text.split(",") if part.strip()]
    for name, _, number in pairs:
        if not name or not (number.isascii() and number.isdigit()):
            raise UgsepError(f"'{name or number}' has no length; write --max-lengths history=50,tags=8")
    return tuple((name.strip(), int(number)) for name, _, number in pairs)
