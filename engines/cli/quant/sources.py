"""What the commands read: the pair of graphs, requests and statistics, as their arguments name them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path

from graphs.base.errors import UgsepError
from quant.calibration.statistics import Calibration, load_calibration
from quant.requests.readers import read_requests
from quant.requests.spec import Request, request_spec
from quant.requests.synthetic import synthetic_requests, table_rows
from quant.schemes.schemes import scheme_from


def onnx_folder(source: Path) -> Path:
    """Return the ``onnx`` folder of a bundle, or the folder itself if it has none."""
    folder = source / "onnx"
    return folder if folder.is_dir() else source


def graph_pair(source: Path) -> tuple[Path, Path]:
    """Return user.onnx and item.onnx of a bundle (its ``onnx`` folder) or of a folder of ONNX files.

    Raises:
        UgsepError: they are not there.
    """
    folder = onnx_folder(source)
    pair = (folder / "user.onnx", folder / "item.onnx")
    for path in pair:
        if not path.is_file():
            raise UgsepError(f"'{path}' does not exist; give a bundle or a folder with user.onnx and item.onnx")
    return pair


def requests_of(
    user: Path, item: Path, data: Sequence[str], synthetic: int | None = None, limit: int | None = None
) -> Iterable[Request]:
    """Return the requests of the files, or so many random ones; at most ``limit``.

    Raises:
        UgsepError: neither or both are given, and the errors of reading, which come while they are read.
    """
    spec = request_spec(user, item)
    if data and synthetic is not None:
        raise UgsepError("--data and --synthetic exclude each other; give one")
    if synthetic is not None:
        requests = synthetic_requests(spec, synthetic, 64, table_rows(user, item), seed=0)
    elif data:
        requests = read_requests(data, spec)
    else:
        raise UgsepError("no data to calibrate on; give --data PATH, or --synthetic N for a trial")
    return islice(requests, limit)


def calibration_of(source: Path, folder: Path | None, scheme: str) -> Calibration | None:
    """Return the statistics in ``folder`` (default: ``source``); absmax takes none where no folder is named.

    Raises:
        UgsepError: they are missing or damaged.
    """
    needed = scheme_from(scheme).needs_calibration or folder is not None
    return load_calibration(folder or source) if needed else None
