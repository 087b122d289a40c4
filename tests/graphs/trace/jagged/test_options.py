"""The declarations of jagged features: contradictions and unknown names are one-line errors."""

import pytest

from graphs.base.errors import UgsepError
from graphs.trace.jagged.options import JaggedOptions, parse_max_lengths


def test_lengths_are_parsed() -> None:
    assert parse_max_lengths(" history=50, tags=8,") == (("history", 50), ("tags", 8))
    assert parse_max_lengths("a=b=3") == (("a=b", 3),)
    assert parse_max_lengths("") == ()


@pytest.mark.parametrize("text", ["history", "history=", "=5", "history=x", "history=-1", "history=1.5"])
def test_what_is_no_length_is_refused(text: str) -> None:
    with pytest.raises(UgsepError, match="write --max-lengths history=50,tags=8"):
        parse_max_lengths(text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (JaggedOptions((("histroy", 5),)), "no jagged feature 'histroy', did you mean 'history'?"),
        (JaggedOptions(single=("items",)), "no jagged feature 'items', did you mean 'item'?"),
        (JaggedOptions((("item", 0),)), "the most ids of 'item' is 0; it must be at least 1"),
        (JaggedOptions((("item", 2), ("item", 3))), "'item' is given 2 and 3 ids at most; give one number"),
        (JaggedOptions((("item", 2),), ("item",)), "'item' has both a single id and at most 2; give one of them"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: JaggedOptions, message: str) -> None:
    with pytest.raises(UgsepError) as error:
        options.check(["history", "item"])
    assert str(error.value) == message


@pytest.mark.parametrize("options", [JaggedOptions(outside=True), JaggedOptions(single=("item",))])
def test_options_without_a_jagged_feature_are_refused(options: JaggedOptions) -> None:
    with pytest.raises(UgsepError, match="no example input is a TorchRec KeyedJaggedTensor"):
        options.check([])
    JaggedOptions().check([])
