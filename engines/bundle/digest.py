"""The digest of a manifest: one value that names all of a bundle, kept in the manifest itself.

It is the sha256 of the manifest's bytes with the 64 hex digits of the digest replaced by zeros; the manifest holds
the sha256 of every other file.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from graphs.base.errors import UgsepError

__all__ = ["UNSEALED", "check_digest", "digest_of", "seal", "short_digest"]

#: The digest field of a text that is not sealed yet.
UNSEALED = "0" * 64
#: A quote inside a JSON string is escaped, so no string of a manifest can look like this field.
_FIELD = re.compile(rb'"digest"\s*:\s*"([0-9a-f]{64})"')
_HEX = re.compile(r"[0-9a-f]{64}")


def seal(text: str) -> str:
    """Return a manifest's text with its digest in the field for it, whatever stood there."""
    raw = text.encode()
    found = _FIELD.search(raw)
    if found is None:
        raise AssertionError("a manifest without a digest field; write it as UNSEALED")
    return raw[: found.start(1)].decode() + digest_of(raw) + raw[found.end(1) :].decode()


def digest_of(raw: bytes) -> str:
    """Return the digest that these bytes of a manifest should hold; damaged bytes have one too, another one."""
    found = _FIELD.search(raw)
    zeroed = raw if found is None else raw[: found.start(1)] + UNSEALED.encode() + raw[found.end(1) :]
    return hashlib.sha256(zeroed).hexdigest()


def short_digest(digest: str) -> str:
    """Return the first 12 digits, by which a server names the version of a model."""
    return digest[:12]


def check_digest(path: Path, raw: bytes, pinned: str | None = None) -> str:
    """Check the bytes of a manifest against their own digest and the ``pinned`` one; nothing else is read from them.

    Returns the digest, or an empty string if the bytes hold none, as those of an older format.

    Raises:
        UgsepError: the bytes differ from their digest, hold two, or are another manifest than the pinned one; or the
            pinned digest is not 64 hex digits.
    """
    if pinned is not None and _HEX.fullmatch(pinned.lower()) is None:
        raise UgsepError(
            f"digest {pinned!a:.80} is not 64 hexadecimal digits; take it from 'ugsep verify --print-digest BUNDLE'"
        )
    found = _FIELD.findall(raw)
    if not found:
        return ""
    digest: str = found[0].decode()
    if len(found) > 1 or digest != digest_of(raw):
        raise UgsepError(
            f"{path}: was changed after it was written (its digest differs); copy the bundle again, or build it again"
        )
    if pinned is not None and digest != pinned.lower():
        raise UgsepError(
            f"{path}: digest {digest[:16]} but {pinned.lower()[:16]} is pinned; this is another bundle: "
            "check where it came from, or pin its digest"
        )
    return digest
