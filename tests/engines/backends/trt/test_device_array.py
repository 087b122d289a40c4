import numpy as np
import pytest

from graphs.base.errors import UgsepError


def test_state_on_the_device_is_taken_as_it_is() -> None:
    # The tensors of this test are in host memory, which makes no difference to the checks.
    import torch

    from engines.backends.built_engine import BuiltEngine, TensorSpec
    from engines.backends.trt.device_array import TorchArray, place_feeds

    inputs = (TensorSpec("ids", "int64", ("candidates",)), TensorSpec("state", "float16", ("users", 3, 5)))
    built = BuiltEngine("tensorrt-rtx", "item", "w8a16", (), 0, inputs, ())
    ids, state = np.arange(4), torch.ones(2, 3, 5, dtype=torch.float16)
    host, there = place_feeds(built, {"ids": ids, "state": TorchArray(state)})
    assert list(host) == ["ids"]
    assert there["state"] is state
    assert TorchArray(state).nbytes == 60
    host, there = place_feeds(built, {"ids": ids, "state": TorchArray(state.float())})  # of an FP32 engine
    assert (host["state"].dtype, there) == (np.float16, {})
    with pytest.raises(UgsepError, match=r"'state' is \[2, 3, 4\] on the device; the engine takes \[users, 3, 5\]"):
        place_feeds(built, {"ids": ids, "state": TorchArray(state[:, :, :4])})
    with pytest.raises(UgsepError, match="input 'ids' is missing"):
        place_feeds(built, {"state": TorchArray(state)})
