"""Compare the Triton W8A16 kernel with FP64; run as a script, because Triton chooses its interpreter on import."""

from __future__ import annotations

import numpy as np
import torch

SHAPES = [(1, 1, 70, 3), (3, 17, 65, 130), (2, 33, 128, 64), (5, 16, 31, 67)]  # tokens, rows, depth, columns


def check(device: str, tokens: int, rows: int, depth: int, columns: int) -> None:
    from engines.backends.trt import w8a16_kernel as kernel

    rng = np.random.default_rng()
    x = rng.standard_normal((tokens, rows, depth)).astype(np.float16)
    q = rng.integers(-127, 128, (tokens, depth, columns), dtype=np.int8)
    s = (rng.uniform(0.5, 1.5, (tokens, columns)) / 127 / np.sqrt(depth)).astype(np.float16)
    got = kernel.run(*(torch.from_numpy(a).to(device) for a in (x, q, s))).cpu().numpy().astype(np.float64)
    x64, q64, s64 = (a.astype(np.float64) for a in (x, q, s))
    want = (x64 @ q64) * s64[:, None, :]
    size = (np.abs(x64) @ np.abs(q64)) * s64[:, None, :]
    # Rounding of the result to FP16 (2^-11, or 2^-25 if subnormal) and of `depth` FP32 additions, 2^-24 each.
    bound = np.abs(want) * 2.0**-11 + 2.0**-25 + size * depth * 2.0**-24
    assert got.shape == (tokens, rows, columns)
    assert (np.abs(got - want) <= bound).all(), np.max(np.abs(got - want) / bound)
    assert np.abs(want).max() > 0.1


if __name__ == "__main__":
    for shape in SHAPES:
        check("cpu", *shape)
    print(f"{len(SHAPES)} shapes agree")
