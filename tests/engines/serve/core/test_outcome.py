import pytest

from engines.serve.core.outcome import code_of
from engines.serve.errors import DeadlineExceeded, NotReady, QueueFull, RankerClosed, UnknownModel
from graphs.base.errors import UgsepError


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UgsepError("bad input"), 400),
        (UnknownModel("no model"), 400),
        (QueueFull("full"), 429),
        (NotReady("loading"), 503),
        (RankerClosed("closed"), 503),
        (DeadlineExceeded("late"), 504),
        (ValueError("ours"), 500),
        (MemoryError(), 500),
    ],
)
def test_every_error_has_its_status(error: Exception, code: int) -> None:
    assert code_of(error) == code
