"""The journal of a run that may be killed: what is finished, each entry with the checksum of its bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from graphs.base.errors import UgsepError


def read_journal(path: Path, key: str) -> dict[str, dict[str, Any]]:
    """Return the entries of a journal by name; none if there is no journal or its key is not ``key``.

    A last line cut short by a kill is ignored, and so is a damaged one: its weight is encoded again.
    """
    if not path.is_file():
        return {}
    first, *lines = path.read_bytes().split(b"\n")
    if first != _line({"key": key}).encode():
        return {}
    found: dict[str, dict[str, Any]] = {}
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # empty, cut short, or not UTF-8
        if isinstance(entry, dict) and isinstance(entry.get("name"), str):
            found[entry["name"]] = entry
    return found


class Journal:
    """A journal that starts with the given entries and is appended to."""

    def __init__(self, path: Path, key: str, entries: dict[str, dict[str, Any]]) -> None:
        self._file = path.open("w")
        self._append({"key": key})
        for entry in entries.values():
            self._append(entry)

    def finished(self, name: str, **facts: Any) -> None:
        """Record that ``name`` is finished; its bytes must be in the files already."""
        self._append({"name": name, **facts})

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _append(self, entry: dict[str, Any]) -> None:
        try:
            self._file.write(_line(entry) + "\n")
            self._file.flush()
        except OSError as error:
            raise UgsepError(
                f"cannot write '{self._file.name}' ({error.strerror}); free space and start again"
            ) from error


def _line(entry: dict[str, Any]) -> str:
    return json.dumps(entry, sort_keys=True)
