"""Extract the MovieLens-100K tables from the recbole wheel, which is never installed."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from graphs.base.errors import UgsepError

REQUIREMENT = "recbole==1.2.1"
WHEEL = "recbole-1.2.1-py3-none-any.whl"
WHEEL_SHA256 = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
MEMBER = "recbole/dataset_example/ml-100k/ml-100k"


def sha256_of(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file.

    Raises:
        UgsepError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UgsepError(f"cannot read {path}: {error.strerror}") from error


def fetch(folder: Path, sha256: str = WHEEL_SHA256, requirement: str = REQUIREMENT) -> Path:
    """Return the path of the wheel in ``folder``, downloading it with pip if it is missing.

    The download goes to a temporary folder and is moved once its hash is verified, so an interrupted run
    leaves nothing half-written.

    Raises:
        UgsepError: the wheel has the wrong hash, pip cannot reach an index, or the folder cannot be written.
    """
    wheel = folder / WHEEL
    if wheel.exists():
        _check(wheel, sha256)
        return wheel
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as scratch:
            _pip_download(requirement, Path(scratch))
            found = sorted(Path(scratch).glob("*.whl"))
            if not found:
                raise UgsepError(f"pip downloaded no wheel for {requirement}; put {WHEEL} into {folder} by hand")
            _check(found[0], sha256)
            found[0].replace(wheel)
    except OSError as error:
        raise UgsepError(f"cannot write to {folder}: {error.strerror}; make it writable") from error
    return wheel


def read_member(wheel: Path, table: str) -> bytes:
    """Return the bytes of one table (``inter``, ``item`` or ``user``) inside the wheel.

    Raises:
        UgsepError: the file is not a wheel or does not contain the table.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            return archive.read(f"{MEMBER}.{table}")
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise UgsepError(f"{wheel}: cannot read {MEMBER}.{table} ({error}); delete the file and run again") from error


def _check(wheel: Path, sha256: str) -> None:
    found = sha256_of(wheel)
    if found != sha256:
        size = wheel.stat().st_size
        raise UgsepError(
            f"{wheel}: sha256 is {found[:12]}... ({size} bytes), expected {sha256[:12]}...; delete it and run again"
        )


def _pip_download(requirement: str, folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary", ":all:", "--dest", str(folder), requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        reason = lines[-1].removeprefix("ERROR: ") if lines else f"exit status {done.returncode}"
        raise UgsepError(f"pip could not download {requirement} ({reason}); check the network and the package index")
