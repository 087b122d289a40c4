"""The README's commands and code do what it says."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests import tiny

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
SHELL = [line for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL) for line in block.splitlines() if line]
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_readme_has_commands_and_code() -> None:
    assert "make engines MODEL=zenith" in SHELL
    assert "make test" in SHELL
    assert len(PYTHON) == 1


@pytest.mark.parametrize("command", SHELL)
def test_every_make_command_is_one_the_makefile_knows(command: str) -> None:
    assert command.startswith("make ")
    # -n resolves targets and variables without running anything; PYTHON only has to exist.
    done = subprocess.run(
        [*command.split(), "-n", "PYTHON=python3"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_ci_runs_the_readme_s_commands() -> None:
    steps = [line.strip() for line in (ROOT / ".ci" / "run").read_text().splitlines()]
    for command in ("make lint", "make test", "make engines MODEL=zenith", "make parity MODEL=zenith"):
        assert command in steps
        assert command in SHELL
    assert steps.index("make engines MODEL=zenith") < next(
        n for n, s in enumerate(steps) if "tests/test_wheel.py" in s
    )


def test_the_python_example_runs_on_a_bundle(built_bundle: Path) -> None:
    user, items = tiny.user_and_items(12)
    scope = {"user": user, "items": items}
    exec(PYTHON[0].replace("build/zenith", str(built_bundle)), scope)
    best = scope["best"]
    logits = scope["logits"]
    assert isinstance(logits, dict)
    assert list(best) == sorted(range(12), key=lambda i: -logits["like"][i])[:10]


def test_the_validate_command_of_the_readme(built_bundle: Path, tiny_sources, tmp_path: Path) -> None:
    found = re.search(r"`(ugsep validate [^`]*)`", README)
    assert found is not None
    junit = tmp_path / "gates.xml"
    places = {"build/zenith": str(built_bundle), "FILE": str(tiny_sources.requests[0]), "gates.xml": str(junit)}
    words = [places.get(word, word) for word in found[1].split()]
    done = subprocess.run(
        [ROOT / ".venv" / "bin" / words[0], *words[1:]], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert 'failures="0"' in junit.read_text()
