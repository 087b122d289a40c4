"""Mutations of safetensors files: the JSON header, its length, the order and the numbers of the tensors."""

from __future__ import annotations

import json
import random
import struct

from benchmarks.reliability.fuzz.mutate.byte_level import mutate_bytes
from benchmarks.reliability.fuzz.mutate.json_values import mutate_json

__all__ = ["mutate_safetensors"]

_ODD_FLOATS = (float("nan"), float("inf"), -1e38, 3e38, 0.0, 1e-42)


def mutate_safetensors(data: bytes, rng: random.Random) -> bytes:
    """Return a safetensors file with a change of its header, its numbers or its bytes."""
    (length,) = struct.unpack("<Q", data[:8])
    header, body = data[8 : 8 + length], data[8 + length :]
    kind = rng.randrange(10)
    if kind <= 3:
        header = mutate_json(header, rng)
    elif kind == 4:
        header = _retyped(header, rng)
    elif kind == 5 and len(body) >= 4:
        changed = bytearray(body)
        for _ in range(rng.randint(1, 8)):
            at = 4 * rng.randrange(len(changed) // 4)
            changed[at : at + 4] = struct.pack("<f", rng.choice(_ODD_FLOATS))
        body = bytes(changed)
    elif kind == 6:
        body = rng.choice((body[:-1], body + b"\0", b"", body[: len(body) // 2], body * 2))
    elif kind == 7:
        lie = rng.choice((0, 1, length - 1, length + 1, length + len(body), 2**31, 2**63, 2**64 - 1))
        return struct.pack("<Q", lie) + header + body
    elif kind == 8:
        header += b" " * rng.randint(1, 64)
    else:
        return mutate_bytes(data, rng)
    return struct.pack("<Q", len(header)) + header + body


def _retyped(header: bytes, rng: random.Random) -> bytes:
    """Give a tensor another dtype and the shape that keeps its bytes."""
    document = json.loads(header)
    names = [name for name in document if name != "__metadata__"]
    entry = document[rng.choice(names)]
    start, end = entry["data_offsets"]
    dtype, width = rng.choice((("F16", 2), ("BF16", 2), ("I32", 4), ("U8", 1), ("F64", 8), ("F8_E4M3", 1)))
    entry["dtype"], entry["shape"] = dtype, rng.choice(([(end - start) // width], [1, (end - start) // width]))
    return json.dumps(document).encode()
