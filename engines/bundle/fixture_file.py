"""The file format of requests with expected logits: ``<stem>.json`` and ``<stem>.safetensors``.

docs/architecture.md, Fixtures, describes it field by field.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from engines.backends.contract import Array
from engines.bundle.document import read_document, read_file
from graphs.base.config import check_plain, parse
from graphs.base.errors import UgsepError, first_line, printable_line
from graphs.base.json_words import shown

__all__ = ["FIXTURE_VERSION", "Fixture", "Fixtures", "load_fixtures", "save_fixtures"]

FIXTURE_VERSION = 1


@dataclass(frozen=True)
class Fixture:
    """One request and the logits that it must get.

    ``user`` has U rows and ``items`` N rows; ``user_index`` (int64 [N], each candidate's row of ``user``) is None if
    there is one user. By task, float32 [N]: ``expected`` logits of the chosen engines, ``reference`` logits of the
    whole FP32 model, ``labels`` of the data. ``label`` is the name that a person sees.
    """

    name: str
    user: Mapping[str, Array]
    items: Mapping[str, Array]
    user_index: Array | None = None
    expected: Mapping[str, Array] = field(default_factory=dict)
    reference: Mapping[str, Array] = field(default_factory=dict)
    label: str = ""
    labels: Mapping[str, Array] = field(default_factory=dict)

    @property
    def users(self) -> int:
        """Number of users U."""
        return len(next(iter(self.user.values()))) if self.user else 0

    @property
    def candidates(self) -> int:
        """Number of candidates N."""
        return len(next(iter(self.items.values()))) if self.items else 0


@dataclass(frozen=True)
class Fixtures:
    """Requests, the largest difference from the expected logits by task, and what ids stand for.

    ``names`` has display names by id input, then by id in decimal: ``{"item_id": {"50": "Star Wars (1977)"}}``.
    """

    requests: tuple[Fixture, ...]
    tolerances: Mapping[str, float] = field(default_factory=dict)
    names: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Entry:
    """One request of the JSON file: its number of rows, and the name of the tensor of every input and output."""

    name: str
    users: int
    candidates: int
    user: Mapping[str, str]
    items: Mapping[str, str]
    user_index: str = ""
    expected: Mapping[str, str] = field(default_factory=dict)
    reference: Mapping[str, str] = field(default_factory=dict)
    label: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Document:
    """The JSON file."""

    version: int
    requests: tuple[_Entry, ...]
    tolerances: Mapping[str, float] = field(default_factory=dict)
    names: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


def save_fixtures(folder: Path, stem: str, fixtures: Fixtures) -> None:
    """Write ``<stem>.json`` and ``<stem>.safetensors``; the same fixtures give the same bytes.

    Equal tensors are stored once, so several requests of one user do not repeat its features.

    Raises:
        UgsepError: a request without a name, or two of one name.
    """
    from safetensors.numpy import save

    _check_unique([f.name for f in fixtures.requests])
    tensors: dict[str, Array] = {}
    known: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def stored(request: str, kind: str, arrays: Mapping[str, Array]) -> dict[str, str]:
        found = {}
        for name, value in arrays.items():
            key = (value.dtype.str, value.shape, value.tobytes())
            if key not in known:
                known[key] = f"{request}/{kind}/{name}"
                tensors[known[key]] = np.ascontiguousarray(value)
            found[name] = known[key]
        return found

    entries = []
    for f in fixtures.requests:
        index = {} if f.user_index is None else {"": f.user_index}
        entries.append(
            _Entry(
                name=f.name,
                users=f.users,
                candidates=f.candidates,
                user=stored(f.name, "user", f.user),
                items=stored(f.name, "items", f.items),
                user_index=stored(f.name, "user_index", index).get("", ""),
                expected=stored(f.name, "expected", f.expected),
                reference=stored(f.name, "reference", f.reference),
                label=f.label,
                labels=stored(f.name, "labels", f.labels),
            )
        )
    document = _Document(FIXTURE_VERSION, tuple(entries), dict(fixtures.tolerances), dict(fixtures.names))
    text = json.dumps(asdict(document), indent=1, sort_keys=True, ensure_ascii=False)
    (folder / f"{stem}.json").write_text(text + "\n", encoding="utf-8")
    # Not save_file, whose file only its owner can read: a server may run as another user.
    (folder / f"{stem}.safetensors").write_bytes(save(tensors))


def load_fixtures(folder: Path, stem: str, fix: str) -> Fixtures:
    """Read both files; arrays are read-only, requests and tensors fit each other, and nothing is left over.

    ``fix`` is how to fix any problem, for the error. Whether requests fit an engine is not checked.

    Raises:
        UgsepError: a file is missing, too large or malformed, a number is not finite, or a tensor is missing, unused
            or of another number of rows than the request says.
    """
    path = folder / f"{stem}.json"
    raw = read_document(folder, path.name, f"; {fix}", fix)
    version = raw.get("version")
    if type(version) is not int or version != FIXTURE_VERSION:
        raise UgsepError(f"{path}: version is {shown(version)}; this ugsep reads {FIXTURE_VERSION}; {fix}")
    try:
        check_plain(raw, stem)
        document = parse(_Document, raw, stem)
        _check_unique([entry.name for entry in document.requests])
    except UgsepError as error:
        raise UgsepError(f"{path}: {error}; {fix}") from error
    tensors = _read_tensors(folder, f"{stem}.safetensors", fix)
    unused = set(tensors)

    def tensor(entry: _Entry, name: str, rows: int) -> Array:
        if name not in tensors:
            raise UgsepError(f"{path}: request '{entry.name}': no tensor '{name}' in {stem}.safetensors; {fix}")
        found = tensors[name]
        if found.ndim == 0 or len(found) != rows or rows < 1:
            raise UgsepError(
                f"{path}: request '{entry.name}': tensor '{name}' is {list(found.shape)}, not {rows} rows; {fix}"
            )
        unused.discard(name)
        return found

    requests = tuple(_fixture(entry, tensor) for entry in document.requests)
    if unused:
        raise UgsepError(f"{path}: no request uses tensor {min(unused)!a:.80} of {stem}.safetensors; {fix}")
    return Fixtures(requests, document.tolerances, document.names)


def _check_unique(names: Sequence[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if not name or name in seen:
            raise UgsepError(f"request '{name}' is given twice" if name else "a request has no name")
        seen.add(name)


def _fixture(entry: _Entry, tensor: Callable[[_Entry, str, int], Array]) -> Fixture:
    def arrays(names: Mapping[str, str], rows: int) -> dict[str, Array]:
        return {key: tensor(entry, name, rows) for key, name in names.items()}

    return Fixture(
        name=entry.name,
        user=arrays(entry.user, entry.users),
        items=arrays(entry.items, entry.candidates),
        user_index=tensor(entry, entry.user_index, entry.candidates) if entry.user_index else None,
        expected=arrays(entry.expected, entry.candidates),
        reference=arrays(entry.reference, entry.candidates),
        label=entry.label,
        labels=arrays(entry.labels, entry.candidates),
    )


def _read_tensors(folder: Path, name: str, fix: str) -> dict[str, Array]:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    data = read_file(folder, name, f"; {fix}", fix)
    try:
        tensors: dict[str, Array] = load(data)
        check_plain(list(tensors), "its list of tensors")
    except (UgsepError, SafetensorError, KeyError, ValueError, TypeError, OverflowError) as error:
        # KeyError: a dtype that NumPy lacks; ValueError: more axes than NumPy allows.
        broken = f"not a safetensors file of NumPy types ({printable_line(first_line(error)):.200})"
        raise UgsepError(f"{folder / name}: {broken}; {fix}") from error
    for key, value in tensors.items():
        value.flags.writeable = False  # requests share tensors
        if value.dtype.kind not in "fiub" or (value.dtype.kind == "f" and not np.isfinite(value).all()):
            raise UgsepError(f"{folder / name}: tensor '{key}' is not made of finite numbers; {fix}")
    return tensors
