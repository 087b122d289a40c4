"""Mutations of YAML: those of JSON on its values, and fragments that only YAML has."""

from __future__ import annotations

import random

import yaml

from benchmarks.reliability.fuzz.mutate.byte_level import mutate_bytes
from benchmarks.reliability.fuzz.mutate.json_values import NUMBERS, TEXTS, mutate_value

__all__ = ["mutate_setting", "mutate_yaml"]

FRAGMENTS = (
    "!!float x", "!!int ''", "!!timestamp x", "!!binary x", "!!python/object/apply:os.system [ls]", "!!set {a, b}",
    "!!omap [a: 1]", "!unknown 1", "!!null x", "!!bool x", "!!str 5", "!!map []", "!!seq {}", "!!pairs x",
    "&a [*a]", "&a {b: *a}", "*missing", "&a 1", "<<: {a: 1}", "{<<: 5}", "{? [a] : 1}", "{[a]: 1}", "{{}: 1}",
    "[&x [1, 1, 1], *x, *x]", "0o17", "0b1", "1_000", "1:30", "012", "0x", "~", "yes", "Off", ".inf", "-.INF", ".nan",
    "2001-01-01", "2001-99-99", "2001-01-01t00:00:00+99:99", '"\\x1b[31m"', '"\\0"', '"\\uD800"', "|\n x",
    "> \n  y", "---", "...", "%YAML 9.9", "\t", "[", "]", "{", "}", "#", "@", "`", "? ", ": ", "- ", "\u2028", "\x85",
    "\x07", "\ufeff", "1" * 5000, "[" * 300, "[" * 20_000, "{a: " * 300, "- " * 2000, "!" * 300, "1e" + "9" * 400,
)  # fmt: skip
_LAUGHS = "\n".join(
    [f"l0: &l0 [{', '.join(['1'] * 9)}]", *(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]" for n in range(1, 10))]
)


def mutate_yaml(text: str, rng: random.Random) -> bytes:
    """Return the text of a YAML document with one to three changes."""
    kind = rng.random()
    if kind < 0.15:
        return mutate_bytes(text.encode(), rng, tuple(f.encode() for f in FRAGMENTS))
    if kind < 0.5:
        document = yaml.safe_load(text)
        for _ in range(rng.choice((1, 1, 2, 3))):
            document = mutate_value(document, rng)
        return yaml.safe_dump(document, sort_keys=False, allow_unicode=True).encode("utf-8", "surrogatepass")
    lines = text.splitlines()
    for _ in range(rng.choice((1, 1, 2))):
        at = rng.randrange(len(lines)) if lines else 0
        fragment = rng.choice(FRAGMENTS)
        choice = rng.randrange(6)
        if choice <= 2 and lines:
            head, colon, _ = lines[at].partition(":")
            lines[at] = f"{head}{colon} {fragment}"
        elif choice == 3:
            lines.insert(at, fragment)
        elif choice == 4 and lines:
            lines.insert(at, lines[rng.randrange(len(lines))])
        else:
            lines.insert(at, _LAUGHS if rng.random() < 0.2 else f"{rng.choice(TEXTS)}: {fragment}")
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def mutate_setting(key: str, rng: random.Random) -> str:
    """Return the argument of a ``--set`` of this key."""
    value = rng.choice((rng.choice(FRAGMENTS), rng.choice(TEXTS), str(rng.choice(NUMBERS))))
    odd = rng.random()
    if odd < 0.1:
        key = rng.choice((key.replace(".", ".."), f".{key}", f"{key}.", key.upper(), f"{key}.x", rng.choice(TEXTS)))
    elif odd < 0.15:
        key = ".".join([key] * 3000)
    text = f"{key}={value}" if rng.random() < 0.95 else f"{key}{value}"
    # What an argument of a process cannot hold.
    return text.replace("\0", "\\0").encode("utf-8", "replace").decode()
