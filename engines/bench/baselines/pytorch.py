"""The whole model in PyTorch: eager, and compiled by TorchInductor."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping

from engines.backends.contract import Array
from engines.bench.baselines.contract import BaselineSource, Bind, Run
from graphs.base.errors import UgsepError

_SIZES = 64  # request sizes to compile before Dynamo falls back to eager


def eager(source: BaselineSource, threads: int) -> Bind:
    """Run the model eagerly, in inference mode."""
    import torch

    torch.set_num_threads(threads)
    model = source.pytorch_model()

    def bind(feeds: Mapping[str, Array]) -> Run:
        tensors = {name: torch.from_numpy(value) for name, value in feeds.items()}

        def run() -> dict[str, Array]:
            with torch.inference_mode():
                return {task: logits.numpy() for task, logits in model(tensors).items()}

        return run

    return bind


def compiled(source: BaselineSource, threads: int) -> Bind:
    """Compile the model for each request size, with weights frozen so that they are packed ahead of time.

    Raises:
        UgsepError: no C++ compiler is installed.
    """
    compiler = "clang++" if sys.platform == "darwin" else "g++"
    if shutil.which(compiler) is None:
        raise UgsepError(f"torch.compile needs a C++ compiler; install {compiler}")
    import torch
    import torch._dynamo

    torch.set_num_threads(threads)
    torch._dynamo.config.recompile_limit = _SIZES
    model = source.pytorch_model()
    # The thread count is compiled into the kernels, so it belongs in the key of Inductor's cache.
    fast = torch.compile(model, dynamic=False, options={"freezing": True, "cpp.threads": threads})

    def bind(feeds: Mapping[str, Array]) -> Run:
        tensors = {name: torch.from_numpy(value) for name, value in feeds.items()}

        def run() -> dict[str, Array]:
            with torch.no_grad():
                return {task: logits.numpy() for task, logits in fast(tensors).items()}

        return run

    return bind
