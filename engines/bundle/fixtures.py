"""The fixtures of a bundle, and examples for it: read as untrusted input and checked against its engines."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from engines.backends.built_engine import TensorSpec
from engines.backends.contract import Array
from engines.bundle.files import verify_files
from engines.bundle.fixture_file import Fixture, Fixtures, load_fixtures
from engines.bundle.manifest import Manifest, engine_for, read_manifest
from graphs.base.errors import UgsepError, nearest
from graphs.base.names import USER_INDEX

__all__ = ["EXAMPLES", "FIXTURES", "read_examples", "read_fixtures"]

#: Stems of the files: those of a bundle, and those of a folder of examples.
FIXTURES, EXAMPLES = "fixtures", "examples"
_MAX_REQUESTS = 4096
_MAX_ROWS = 1 << 20  # candidates of all requests together; tensors that requests share cost a file nothing
_MAX_TEXT = 256


def read_fixtures(bundle: Path) -> Fixtures:
    """Read the fixtures of a bundle, after checking the hashes of their two files.

    Raises:
        UgsepError: not a bundle, no fixtures, a file that was modified, or content that does not fit the engines.
    """
    manifest = read_manifest(bundle)
    fix = f"rebuild: {manifest.rebuild}"
    names = (f"{FIXTURES}.json", f"{FIXTURES}.safetensors")
    for name in names:
        if name not in manifest.files:
            raise UgsepError(f"{bundle}: no {name} among the hashed files; {fix}")
    verify_files(bundle, {name: manifest.files[name] for name in names}, manifest.rebuild)
    found = load_fixtures(bundle, FIXTURES, fix)
    _check(found, manifest, bundle / names[0], fix)
    if not all(f.expected for f in found.requests) or not found.requests:
        raise UgsepError(f"{bundle / names[0]}: every fixture needs expected logits, and there must be one; {fix}")
    return found


def read_examples(folder: Path, manifest: Manifest, stem: str = EXAMPLES) -> Fixtures:
    """Read the examples in a folder, for the bundle with this manifest; their expected logits are optional.

    Raises:
        UgsepError: a file is missing or malformed, or a request does not fit the bundle's engines.
    """
    fix = "write the examples again for this bundle"
    found = load_fixtures(folder, stem, fix)
    _check(found, manifest, folder / f"{stem}.json", fix)
    return found


def _check(found: Fixtures, manifest: Manifest, path: Path, fix: str) -> None:
    """Check requests against the chosen engines; ``path`` is the JSON file and ``fix`` the end of an error."""
    user, item = engine_for(manifest, "user").built, engine_for(manifest, "item").built
    inner = {o.name for o in user.outputs} | {USER_INDEX}
    tasks = tuple(TensorSpec(o.name, "float32", ("candidates", *o.shape[1:])) for o in item.outputs)
    items = tuple(i for i in item.inputs if i.name not in inner)
    takes_index = any(i.name == USER_INDEX for i in item.inputs)
    count = len(found.requests)
    rows = sum(f.candidates for f in found.requests)
    try:
        if count > _MAX_REQUESTS or rows > _MAX_ROWS:
            raise UgsepError(
                f"{count} requests of {rows} candidates; at most {_MAX_REQUESTS} of {_MAX_ROWS} together"
            )
        for f in found.requests:
            _check_request(f, user.inputs, items, tasks, takes_index)
        _check_tolerances(found, [t.name for t in tasks])
        _check_names(found.names, [i.name for i in (*user.inputs, *items) if i.dtype == "int64"])
    except UgsepError as error:
        raise UgsepError(f"{path}: {error}; {fix}") from error


def _check_request(
    f: Fixture,
    user: tuple[TensorSpec, ...],
    items: tuple[TensorSpec, ...],
    tasks: tuple[TensorSpec, ...],
    takes_index: bool,
) -> None:
    where = f"request '{f.name}'"
    _check_text(f.name, "the name of a request")
    _check_text(f.label, f"{where}: its label")
    _check_tensors(f.user, user, f"{where}: user feature")
    _check_tensors(f.items, items, f"{where}: item feature")
    for kind, given in (("expected", f.expected), ("reference", f.reference)):
        if given:
            _check_tensors(given, tasks, f"{where}: {kind} logits of task")
    known = [t for t in tasks if t.name in f.labels]
    _check_tensors(f.labels, tuple(known), f"{where}: labels of task")
    if f.user_index is None:
        if f.users != 1:
            raise UgsepError(f"{where} has {f.users} users and no user_index")
        return
    if not takes_index:
        raise UgsepError(f"{where} has a user_index, but the item engine serves one user per call")
    _check_tensors({USER_INDEX: f.user_index}, (TensorSpec(USER_INDEX, "int64", ("candidates",)),), f"{where}:")
    if f.user_index.min() < 0 or f.user_index.max() >= f.users:
        raise UgsepError(f"{where}: user_index must be in 0 to {f.users - 1}")


def _check_tensors(given: Mapping[str, Array], specs: tuple[TensorSpec, ...], what: str) -> None:
    """Check names, dtypes and the shape of a row; the number of rows was checked when the file was read."""
    known = [spec.name for spec in specs]
    for name in given:
        if name not in known:
            raise UgsepError(f"{what} '{name}' is unknown{nearest(name, known)}")
    for spec in specs:
        if spec.name not in given:
            raise UgsepError(f"{what} '{spec.name}' is missing")
        value, row = given[spec.name], spec.shape[1:]
        if value.dtype.name != spec.dtype or value.shape[1:] != row:
            got = f"{value.dtype.name}{list(value.shape)}"
            raise UgsepError(f"{what} '{spec.name}' is {got}; the engine has {spec.dtype} rows of shape {list(row)}")


def _check_tolerances(found: Fixtures, tasks: list[str]) -> None:
    wanted = set(tasks) if any(f.expected for f in found.requests) else set()
    if set(found.tolerances) != wanted:
        raise UgsepError(f"tolerances are for {sorted(found.tolerances)}, must be for {sorted(wanted)}")
    for task, bound in found.tolerances.items():
        if not 0 <= bound < np.inf:
            raise UgsepError(f"the tolerance of task '{task}' is {bound:g}; it must be at least 0")


def _check_names(names: Mapping[str, Mapping[str, str]], inputs: list[str]) -> None:
    for name, texts in names.items():
        if name not in inputs:
            raise UgsepError(f"names of '{name}', which is not an id input{nearest(name, inputs)}")
        for key, text in texts.items():
            if not (key.isascii() and key.isdecimal() and len(key) < 20):
                raise UgsepError(f"names of '{name}': {key!a:.60} is not an id")
            _check_text(text, f"the name of {name} {key}")


def _check_text(text: str, what: str) -> None:
    if len(text) > _MAX_TEXT:
        raise UgsepError(f"{what} has {len(text)} characters; at most {_MAX_TEXT}")
