"""A parser with a bug behind two comparisons, one that dies, and one that hangs: what the fuzzer must find."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

from benchmarks.reliability.fuzz.guided.parser import Parser
from graphs.base.errors import UgsepError


def with_a_bug(_: Path) -> Parser:
    def mutate(data: bytes, rng: random.Random) -> bytes:
        raise ValueError("the fuzzer's own mutations have to do")

    return Parser(_parse, (b"{abc}",), mutate)


def that_dies(_: Path) -> Parser:
    def parse(data: bytes) -> None:
        if len(data) > 6:
            os.kill(os.getpid(), signal.SIGABRT)
        _parse(b"{" + data[:1])

    return Parser(parse, (b"{abc}",), lambda data, rng: data + b"x")


def that_hangs(_: Path) -> Parser:
    def parse(data: bytes) -> None:
        while data == b"hang":
            continue

    return Parser(parse, (b"{abc}",), lambda data, rng: data)


def _parse(data: bytes) -> None:
    if data[:1] != b"{":
        raise UgsepError("not an object; write one")
    if data[1:2] == b"!":
        raise KeyError("planted")
