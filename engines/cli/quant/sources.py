"""The inputs of the commands, from their arguments: the pair of graphs, requests and statistics."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path

from graphs.base.errors import UgsepError
from graphs.base.regular_file import is_regular_file
from quant.calibration.files import load_calibration
from quant.calibration.statistics import Calibration
from quant.requests.readers import read_requests
from quant.requests.spec import Request, request_spec
from quant.requests.synthetic import SYNTHETIC_CANDIDATES, synthetic_requests, table_rows
from quant.schemes.schemes import scheme_from


def onnx_folder(source: Path) -> Path:
    """Return the ``onnx`` folder of a bundle, or the folder itself if it has none."""
    folder = source / "onnx"
    return folder if folder.is_dir() else source


def graph_pair(source: Path) -> tuple[Path, Path]:
    """Return the paths of user.onnx and item.onnx, in a bundle's ``onnx`` folder or in a folder of ONNX files.

    Raises:
        UgsepError: one of them is missing.
    """
    folder = onnx_folder(source)
    pair = (folder / "user.onnx", folder / "item.onnx")
    for path in pair:
        if not is_regular_file(path, "export the model again"):
            raise UgsepError(f"'{path}' does not exist; pass a bundle or a directory with user.onnx and item.onnx")
    return pair


def requests_of(
    user: Path, item: Path, data: Sequence[str], synthetic: int | None = None, limit: int | None = None
) -> Iterable[Request]:
    """Return at most ``limit`` requests, from the files or ``synthetic`` random ones.

    Raises:
        UgsepError: neither or both are given. Errors in the files are raised during iteration.
    """
    spec = request_spec(user, item)
    if data and synthetic is not None:
        raise UgsepError("--data and --synthetic are mutually exclusive; pass one of them")
    if synthetic is not None:
        requests = synthetic_requests(spec, synthetic, SYNTHETIC_CANDIDATES, table_rows(user, item), seed=0)
    elif data:
        requests = read_requests(data, spec)
    else:
        raise UgsepError("no calibration requests; pass --data PATH, or --synthetic N for a trial run")
    return islice(requests, limit)


def calibration_of(source: Path, folder: Path | None, scheme: str) -> Calibration | None:
    """Return the statistics in ``folder``, by default ``source``; None for absmax if no folder is given.

    Raises:
        UgsepError: the statistics are missing or damaged.
    """
    needed = scheme_from(scheme).needs_calibration or folder is not None
    return load_calibration(folder or source) if needed else None
