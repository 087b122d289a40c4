"""``python -m benchmarks.streaming``: memory, time and size of a streamed quantization, run in a separate process.

The baseline is one cold read of the checkpoint from the same disk. The checkpoint is dropped from the page cache
before both, so neither reads from memory.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from benchmarks.streaming_result import StreamingRun
from engines.cli.group import Command
from engines.measure.process_memory import resident_bytes
from graphs.base.errors import GateFailed, UgsepError
from graphs.checkpoint.files import stored_weights, weight_files

MODELS = {"7b": "tokenmixer-large-7b", "500m": "tokenmixer-large-500m", "20m": "tokenmixer-large-20m"}
_SAMPLE_SECONDS = 0.05
_READ_BYTES = 8 << 20
_STEP = re.compile(r"(split|export|quantize user|quantize item) \d+/")  # "quantize user 3/29 name"
_CLI = [sys.executable, "-c", "from engines.cli.main import main; main()"]


def measure_streaming(model: str, checkpoint: Path, out: Path) -> StreamingRun:
    """Stream a checkpoint in a fresh process and sample its memory.

    Raises:
        UgsepError: the run failed; the message has the last line it printed.
    """
    files = [p for p in weight_files(checkpoint) if p.suffix == ".safetensors"]
    stored = stored_weights(checkpoint).values()
    sizes = [s.dtype.itemsize * _elements(s.shape) for s in stored]
    shutil.rmtree(out, ignore_errors=True)
    drop_cache(files)
    read_seconds = read_once(files)
    drop_cache(files)
    curve, steps, facts, seconds = _watched(
        [*_CLI, "stream", model, "--checkpoint", str(checkpoint), "--out", str(out), "--json"]
    )
    before = [size for at, size in curve if at < steps.get("quantize user", seconds)]
    return StreamingRun(
        model=Path(model).stem,
        checkpoint_bytes=sum(p.stat().st_size for p in files),
        largest_bytes=max(sizes),
        int8_bytes=facts["int8_bytes"],
        output_bytes=facts["output_bytes"],
        peak_bytes=facts["peak_bytes"],
        traced_bytes=max(before, default=0),
        read_seconds=read_seconds,
        stream_seconds=seconds,
        curve=tuple(curve),
        steps=steps,
    )


def drop_cache(files: list[Path]) -> None:
    """Drop the files from the page cache, as far as that is possible without root."""
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def read_once(files: list[Path]) -> float:
    """Read the files sequentially into one buffer; return the seconds taken."""
    buffer = memoryview(bytearray(_READ_BYTES))
    started = time.perf_counter()
    for file in files:
        with file.open("rb", buffering=0) as stream:
            while stream.readinto(buffer):
                continue
    return time.perf_counter() - started


def _watched(command: list[str]) -> tuple[list[tuple[float, int]], dict[str, float], dict[str, Any], float]:
    """Run a command; return its memory curve, the start of each step, the JSON it printed, and the seconds taken."""
    started = time.perf_counter()
    steps: dict[str, float] = {}
    tail: list[str] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stdout is not None
        stream = process.stderr

        def listen() -> None:
            for line in stream:
                tail[:] = [*tail[-20:], line.rstrip()]
                if (found := _STEP.match(line)) is not None:
                    steps.setdefault(found[1], time.perf_counter() - started)

        listener = threading.Thread(target=listen)
        listener.start()
        curve: list[tuple[float, int]] = []
        while process.poll() is None:
            resident = resident_bytes(process.pid)
            if resident:
                curve.append((round(time.perf_counter() - started, 3), resident))
            time.sleep(_SAMPLE_SECONDS)
        seconds = time.perf_counter() - started
        listener.join()
        text = process.stdout.read()
    if process.returncode:
        raise UgsepError(f"the measured run failed: {tail[-1] if tail else process.returncode}")
    return curve, steps, json.loads(text), seconds


def _elements(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


@click.command(cls=Command)
@click.option("--size", type=click.Choice(sorted(MODELS)), default="20m", show_default=True)
@click.option("--folder", type=click.Path(path_type=Path), default=Path("build/streaming"), show_default=True)
@click.option("--keep", is_flag=True, help="Keep the checkpoint and the graphs instead of deleting them.")
def main(size: str, folder: Path, keep: bool) -> None:
    """Write a random checkpoint, stream it, and check memory, size and time against their bounds."""
    from benchmarks.streaming_page import page

    name, work = MODELS[size], folder / size
    checkpoint, out = work / "checkpoint", work / "onnx"
    if not (checkpoint / "config.json").is_file():
        shutil.rmtree(checkpoint, ignore_errors=True)
        made = subprocess.run([*_CLI, "random-checkpoint", name, "--out", str(checkpoint)], check=False)
        if made.returncode:
            raise UgsepError(f"cannot write a checkpoint of '{name}' to {checkpoint}; see the error above")
    found = measure_streaming(name, checkpoint, out)
    (work / "memory.json").write_text(json.dumps(asdict(found)) + "\n")
    (work / "memory.html").write_text(page(found, found.checks()))
    if not keep:
        shutil.rmtree(checkpoint)
        shutil.rmtree(out)
    click.echo(
        f"{found.model}: {found.checkpoint_bytes / 1e9:.2f} GB read once in {found.read_seconds:.1f} s, "
        f"streamed in {found.stream_seconds:.1f} s to {found.output_bytes / 1e9:.2f} GB; {work / 'memory.html'}"
    )
    for check in found.checks():
        click.echo(f"  {check}")
    broken = [str(t) for t in found.checks() if not t.passed]
    if broken:
        raise GateFailed(f"{found.model}: {'; '.join(broken)}")


if __name__ == "__main__":
    main()
