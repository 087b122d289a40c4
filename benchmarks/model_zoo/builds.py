"""Models of the test bed through ``ugsep build``: the outcome of every gate."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.model_zoo.environment import ROOT
from benchmarks.model_zoo.results import Build, Gate, Result

FACTORIES = Path("benchmarks/model_zoo/factories.py")
_SECONDS = 1800

#: What goes the whole road: of every package what is most used, and a model of every kind of interaction.
BUILT: Sequence[str] = (
    "deepctr_torch_deepfm",
    "deepctr_torch_dcn_matrices",
    "deepctr_torch_autoint",
    "deepctr_torch_din",
    "deepctr_torch_mmoe",
    "torch_rechub_deepfm",
    "torch_rechub_dcn_v2_mixture",
    "torch_rechub_din",
    "torch_rechub_dssm",
    "torch_rechub_hstu_next_item",
    "recbole_deepfm",
    "recbole_xdeepfm",
    "recbole_autoint",
    "recbole_sasrec",
    "recbole_gru4rec",
    "recbole_neumf",
    "fuxictr_dcn_v2",
    "fuxictr_fibinet",
    "fuxictr_din",
    "torchrec_dlrm",
    "torchrec_dlrm_dcn_low_rank",
    "transformers_llama_last_position",
    "transformers_gpt_2",
    "transformers_bert",
)


def build(python: Path, name: str, measured: Result, folder: Path) -> Build:
    """Build a model's bundle in a process of its own and return the gates of its report."""
    started = time.perf_counter()
    out = (folder / "bundles" / name).absolute()
    command = [str(python), "-c", "from engines.cli.entry import ugsep; ugsep()", "build", f"{FACTORIES}:{name}"]
    command += ["--user", ",".join(measured.user), "--item", ",".join(measured.item), "--out", str(out), "--json"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_SECONDS, cwd=ROOT)
    except subprocess.TimeoutExpired:
        return Build(-1, reason=f"took more than {_SECONDS} s", seconds=_SECONDS)
    seconds = round(time.perf_counter() - started, 1)
    report = (out if done.returncode == 0 else out.with_name(f"{out.name}.failed")) / "report.json"
    if not report.is_file():
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        return Build(done.returncode, reason=lines[-1] if lines else "no output", seconds=seconds)
    values = json.loads(report.read_text())
    gates = tuple(Gate(t["name"], t["value"], t["bound"], t["relation"], t["passed"]) for t in values["targets"])
    latency = values["latency"]
    return Build(done.returncode, gates, "", latency["speedup"], latency["limit"], seconds)
