from __future__ import annotations

from collections.abc import Callable

import pytest

from benchmarks.reliability.fuzz.guided.parser import Parser, joined, parted
from benchmarks.reliability.fuzz.guided.verdict import judged
from graphs.base.errors import GateFailed, UgsepError


class _Panic(BaseException):
    """As the panics of Rust extensions, which are no Exception."""


def raising(error: BaseException) -> Callable[[bytes], None]:
    def parse(_: bytes) -> None:
        raise error

    return parse


def verdict_of(parse: Callable[[bytes], object]) -> tuple[str, str]:
    verdict = judged(Parser(parse, (), lambda data, rng: data), b"")
    return verdict.result, verdict.kind


def test_what_is_a_defect() -> None:
    assert verdict_of(bytes) == ("ok", "")
    assert verdict_of(raising(UgsepError("a\nb"))) == ("refused", "")
    assert verdict_of(raising(UgsepError(""))) == ("defect", "not one printable line")
    for error in (KeyError("x"), GateFailed("x"), RecursionError(), MemoryError(), SystemExit(2), _Panic()):
        assert verdict_of(raising(error)) == ("defect", f"{type(error).__name__} in test_verdict.py parse")


def test_ctrl_c_is_no_defect() -> None:
    with pytest.raises(KeyboardInterrupt):
        verdict_of(raising(KeyboardInterrupt()))


def test_two_files_in_one_input() -> None:
    assert parted(joined(b"ab", b"cde")) == (b"ab", b"cde")
    assert parted(b"") == (b"", b"")
    assert parted(b"\xff\xff\xff\xffabc") == (b"abc", b"")
