"""Einsums with every axis named, as the rules of the rows and the ONNX exporter read them."""

from __future__ import annotations

import string
from collections.abc import Sequence

__all__ = ["explicit"]


def explicit(equation: str, ranks: Sequence[int]) -> str:
    """Return an equation without ellipses and with its result.

    Args:
        equation: as ``torch.einsum`` takes it.
        ranks: the number of axes of every operand.

    Without ``->``, the result has the axes of the ellipsis and then the letters that occur once, in the order of the
    alphabet, upper case first. Axes of ellipses are aligned from the right, as in broadcasting.
    """
    left, arrow, result = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    hidden = [rank - len(t.replace("...", "")) if "..." in t else 0 for t, rank in zip(terms, ranks, strict=True)]
    free = [c for c in string.ascii_letters if c not in left + result]
    letters = "".join(free[: max(hidden)])
    if not arrow:
        once = (c for c in sorted(set(left) - {",", "."}) if left.count(c) == 1)
        result = ("..." if "..." in left else "") + "".join(once)
    named = [t.replace("...", letters[len(letters) - n :]) for t, n in zip(terms, hidden, strict=True)]
    return f"{','.join(named)}->{result.replace('...', letters)}"
