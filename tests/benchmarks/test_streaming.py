"""Which bounds apply to a streaming measurement, by the size of its checkpoint."""

from __future__ import annotations

import pytest

from benchmarks.streaming_result import StreamingRun


@pytest.mark.parametrize(("size", "bounds"), [(4 * 10**7, 2), (10**9, 3), (14 * 10**9, 4)])
def test_time_is_a_bound_for_huge_checkpoints_only(size: int, bounds: int) -> None:
    found = StreamingRun("m", size, 10**6, size // 2, size * 51 // 100, 2**30, 2**29, 10.0, 31.0, (), {}).checks()
    assert len(found) == bounds
    broken = {t.name for t in found if not t.passed}
    # 512 MiB were added where 257 are allowed; 31 s are more than three times 10
    assert broken == {"memory added while quantizing, MiB"} | ({"time over one cold read"} if bounds == 4 else set())
