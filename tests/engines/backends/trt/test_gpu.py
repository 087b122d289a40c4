import pytest

from engines.backends.trt.gpu import accepts


@pytest.mark.parametrize(
    ("wanted", "capability", "runs"),
    [
        ("8.6,8.9", "8.9", True),
        ("8.6,8.9", "8.0", False),
        ("8.0+", "9.0", True),
        ("8.0+", "7.5", False),
        ("", "8.0", False),
    ],
)
def test_capabilities(wanted: str, capability: str, runs: bool) -> None:
    assert accepts(wanted, capability) == runs
    assert accepts("8.9", "8.10") is False
