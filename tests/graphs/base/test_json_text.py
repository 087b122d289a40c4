from __future__ import annotations

import pytest

from graphs.base.errors import UgsepError
from graphs.base.json_text import read_json


@pytest.mark.parametrize("text", ["{", b"\xff\x00", '{"a": 1, "a": 2}', "NaN", "[" * 100_000])
def test_bad_json_is_one_line(text: str | bytes) -> None:
    with pytest.raises(UgsepError, match=r"^here: not valid JSON \([^\n]*\); fix it$"):
        read_json(text, "here", "fix it")
