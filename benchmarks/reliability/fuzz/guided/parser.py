"""What a parser under test is: how to call it on bytes, sound inputs to start from, and how to change them."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Parser", "joined", "parted"]


@dataclass(frozen=True)
class Parser:
    """A parser as the fuzzer sees it.

    Args:
        parse: gets the bytes of an input; it returns or raises ``UgsepError``, all else is a defect.
        seeds: sound inputs, which must be accepted.
        mutate: returns a changed input that keeps most of the format; it may raise on bytes that it cannot read.
    """

    parse: Callable[[bytes], object]
    seeds: tuple[bytes, ...]
    mutate: Callable[[bytes, random.Random], bytes]


def joined(first: bytes, second: bytes) -> bytes:
    """Return two files as one input: the length of the first in four bytes, then both."""
    return struct.pack("<I", len(first)) + first + second


def parted(data: bytes) -> tuple[bytes, bytes]:
    """Return the two files of an input; every input has two, if need be empty ones."""
    length = int.from_bytes(data[:4], "little")
    return data[4 : 4 + length], data[4 + length :]
