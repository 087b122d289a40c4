"""The environment of the packages: made once under build/, on top of the one that runs this."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from engines.backends.contract import Notify
from graphs.base.errors import UgsepError

ROOT = Path(__file__).parents[2]
DEFAULT_FOLDER = Path("build/model_zoo")
REQUIREMENTS = Path(__file__).with_name("requirements.txt")
_COMMAND = "#!{python}\nfrom engines.cli.entry import ugsep\n\nugsep()\n"


def python_of(folder: Path) -> Path:
    """Return the interpreter of the environment in a folder.

    Raises:
        UgsepError: it was not made, or for other versions.
    """
    if not _is_ready(folder):
        raise UgsepError(
            f"{folder / 'env'}: no environment with the packages; run: python -m benchmarks.model_zoo setup"
        )
    return folder / "env" / "bin" / "python"


def set_up(folder: Path, say: Notify) -> None:
    """Install the packages if they are missing: about 600 MB.

    They are installed without what they declare to need, because RecBole and FuxiCTR pin old or large packages that
    their models do not use; requirements.txt lists what importing them takes. torch and all else come from the
    environment that runs this.

    Raises:
        UgsepError: a package cannot be installed.
    """
    env = folder / "env"
    if _is_ready(folder):
        say(f"{env}: ready")
        return
    shutil.rmtree(env, ignore_errors=True)
    say(f"{env}: installing {REQUIREMENTS.name}")
    _run([sys.executable, "-m", "venv", str(env)])
    python = env / "bin" / "python"
    _run([str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--requirement", str(REQUIREMENTS)])
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    paths = (ROOT, Path(sysconfig.get_paths()["purelib"]))
    (env / "lib" / version / "site-packages" / "model_zoo.pth").write_text("".join(f"{p}\n" for p in paths))
    command = env / "bin" / "ugsep"  # so that 'make engines BIN=build/model_zoo/env/bin' works
    command.write_text(_COMMAND.format(python=python.absolute()))
    command.chmod(0o755)
    (env / ".ready").write_text(_digest())
    say(f"{env}: ready")


def _is_ready(folder: Path) -> bool:
    ready = folder / "env" / ".ready"
    return ready.is_file() and ready.read_text() == _digest()


def _digest() -> str:
    return hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("WARNING")]
        raise UgsepError(f"'{' '.join(command[:6])} ...' failed: {lines[-1] if lines else done.returncode}")
