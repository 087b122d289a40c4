"""An open bundle: its files, and requests that fit its model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from engines.bundle.files import verify_files
from engines.bundle.manifest import Manifest, read_manifest
from engines.bundle.report_file import read_report

if TYPE_CHECKING:  # a server must not import these
    from engines.recipes.recipe import Recipe
    from quant.requests.spec import Request, RequestSpec

__all__ = ["RECIPE", "Bundle", "onnx_file"]

RECIPE = "recipe.yaml"


@dataclass(frozen=True)
class Bundle:
    """A bundle directory and its manifest."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: Path, digest: str | None = None) -> Self:
        """Read a bundle's manifest and check every file against it; no engine is loaded.

        Raises:
            UgsepError: not a bundle, another one than ``digest`` pins, an invalid manifest, or a file that does not
                match it.
        """
        manifest = read_manifest(path, digest)
        verify_files(path, manifest.files, manifest.rebuild)
        return cls(path, manifest)

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe of the bundle, with every default filled in.

        Raises:
            UgsepError: the recipe cannot be read.
        """
        return self.changed_recipe(())

    def changed_recipe(self, changes: Sequence[str]) -> Recipe:
        """Return the recipe with some settings replaced; ``changes`` as in ``load_recipe``.

        Raises:
            UgsepError: the recipe cannot be read, or a change is not a valid setting.
        """
        from engines.recipes.recipe import load_recipe

        return load_recipe(str(self.path / RECIPE), changes)

    @cached_property
    def report(self) -> dict[str, Any]:
        """The content of ``report.json``.

        Raises:
            UgsepError: the report cannot be read.
        """
        return read_report(self.path)

    def onnx(self, side: str) -> Path:
        """Return the FP32 ONNX file of one side; its quantized variants are in the same folder."""
        return onnx_file(self.path, side)

    def check_graphs(self) -> None:
        """Check what every ONNX file says of its tensors against the bytes that are there, those of engines too.

        Raises:
            UgsepError: a shape, type, size or place that cannot be.
            ModuleNotFoundError: the ONNX tooling is not installed, as on a server.
        """
        from export.io import read_graph

        for name in self.manifest.files:
            if name.endswith(".onnx"):
                read_graph(self.path / name)

    def request_spec(self) -> RequestSpec:
        """Return the columns that a request needs, read from the graphs.

        Raises:
            UgsepError: a graph cannot be read.
        """
        from quant.requests.spec import request_spec

        return request_spec(self.onnx("user"), self.onnx("item"))

    def read_requests(self, files: Sequence[Path | str]) -> Iterator[Request]:
        """Yield the requests of files, folders or globs.

        Raises:
            UgsepError: files that cannot be read or do not fit the graphs.
        """
        from quant.requests.readers import read_requests

        return read_requests(files, self.request_spec())

    def synthetic_requests(
        self, requests: int | None = None, candidates: int | None = None, seed: int = 0
    ) -> Iterator[Request]:
        """Yield random requests with valid ids; number and size default to those of a build.

        Raises:
            UgsepError: a graph cannot be read.
        """
        from quant.requests.synthetic import SYNTHETIC_CANDIDATES, SYNTHETIC_REQUESTS, synthetic_requests, table_rows

        number = SYNTHETIC_REQUESTS if requests is None else requests
        size = SYNTHETIC_CANDIDATES if candidates is None else candidates
        vocabulary = max(table_rows(self.onnx("user"), self.onnx("item")), 1)
        return synthetic_requests(self.request_spec(), number, size, vocabulary, seed)


def onnx_file(folder: Path, side: str) -> Path:
    """Return the path of one side's FP32 ONNX file in a bundle or in a build's working folder."""
    return folder / "onnx" / f"{side}.onnx"
