"""What a loaded engine takes and gives, against what the manifest says of it."""

from __future__ import annotations

from collections.abc import Sequence

from engines.backends.contract import BuiltEngine, TensorSpec
from graphs.base.errors import UgsepError


def check_loaded(
    where: object, built: BuiltEngine, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> None:
    """Compare names, dtypes and fixed dimensions of a loaded engine with its record.

    Raises:
        UgsepError: they differ; both are printed.
    """
    for what, listed, found in (("input", built.inputs, inputs), ("output", built.outputs, outputs)):
        names, loaded = [spec.name for spec in listed], {spec.name: spec for spec in found}
        if set(names) != set(loaded):
            raise UgsepError(
                f"{where}: {what}s are {', '.join(loaded)} but the manifest says {', '.join(names)}; "
                "build the bundle again"
            )
        for spec in listed:
            if not _agree(spec, loaded[spec.name], exact=what == "input"):
                raise UgsepError(
                    f"{where}: {what} '{spec.name}' is {_text(loaded[spec.name])} but the manifest says "
                    f"{_text(spec)}; build the bundle again"
                )


def _agree(listed: TensorSpec, loaded: TensorSpec, exact: bool) -> bool:
    """Say whether a tensor is as listed; of an output a runtime may know a size that the graph leaves open."""
    if listed.dtype != loaded.dtype or len(listed.shape) != len(loaded.shape):
        return False
    pairs = zip(listed.shape, loaded.shape, strict=True)
    return all(a == b or isinstance(b, str) or (isinstance(a, str) and not exact) for a, b in pairs)


def _text(spec: TensorSpec) -> str:
    return f"{spec.dtype}[{', '.join(map(str, spec.shape))}]"
