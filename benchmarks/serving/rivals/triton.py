"""A model repository of a bundle for Tritonserver, and the command that starts it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.serving.rivals.spec import item_features, write_spec
from engines.backends.built_engine import TensorSpec
from engines.bundle.manifest import Manifest, engine_for

_TYPES = {"float32": "TYPE_FP32", "float16": "TYPE_FP16", "int64": "TYPE_INT64", "int32": "TYPE_INT32"}
_MODEL = Path(__file__).with_name("triton_model.py")


@dataclass(frozen=True)
class TritonCommand:
    """How to start Tritonserver: the command, and what it adds to the environment."""

    arguments: tuple[str, ...]
    environment: Mapping[str, str]


def write_repository(bundle: Path, manifest: Manifest, folder: Path, cache_bytes: int) -> None:
    """Write two ways to serve the bundle: ``<model>``, one Python model with a cache of states of its own, and
    ``<model>_ensemble``, user and item model in turn, with Triton's response cache on the user model.
    """
    shutil.rmtree(folder, ignore_errors=True)
    engines = folder.with_name("engines").resolve()
    write_spec(bundle, manifest, engines, cache_bytes)
    user, item = engine_for(manifest, "user").built, engine_for(manifest, "item").built
    features, states, scores = item_features(manifest), user.outputs, item.outputs
    name = manifest.model
    parts = {
        name: ("both", (*user.inputs, *features), scores),
        f"{name}_user": ("user", user.inputs, states),
        f"{name}_item": ("item", (*features, *states), scores),
    }
    for model, (part, inputs, outputs) in parts.items():
        text = [f'name: "{model}"', 'backend: "python"', "max_batch_size: 0", *_tensors("input", inputs)]
        text += [*_tensors("output", outputs), "instance_group [{ count: 1 kind: KIND_CPU }]"]
        text += [_parameter("part", part), _parameter("engines", str(engines))]
        if part == "user":
            text.append("response_cache { enable: true }")
        _write_model(folder / model, text)
        shutil.copy2(_MODEL, folder / model / "1" / "model.py")
    ensemble = [f'name: "{name}_ensemble"', 'platform: "ensemble"', "max_batch_size: 0"]
    ensemble += [*_tensors("input", (*user.inputs, *features)), *_tensors("output", scores), "ensemble_scheduling {"]
    ensemble += (
        _step(f"{name}_user", user.inputs, states) + _step(f"{name}_item", (*features, *states), scores) + ["}"]
    )
    _write_model(folder / f"{name}_ensemble", ensemble)


def triton_command(
    installed: Path, repository: Path, http_port: int, grpc_port: int, cache_bytes: int
) -> TritonCommand:
    """Return the command for an installed Tritonserver; it listens on the loopback only."""
    python = next((installed / "env" / "lib").glob("python3*")) / "site-packages"
    server = installed / "server"
    arguments = (
        str(server / "bin" / "tritonserver"),
        f"--model-repository={repository}",
        f"--backend-directory={server / 'backends'}",
        f"--cache-directory={server / 'caches'}",
        f"--cache-config=local,size={cache_bytes}",
        "--http-address=127.0.0.1",
        "--grpc-address=127.0.0.1",
        f"--http-port={http_port}",
        f"--grpc-port={grpc_port}",
        "--allow-metrics=false",
        "--log-info=false",
        "--exit-timeout-secs=5",
    )
    libraries = os.pathsep.join([str(installed / "libs"), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])])
    return TritonCommand(arguments, {"LD_LIBRARY_PATH": libraries, "PYTHONPATH": str(python)})


def _write_model(folder: Path, lines: Iterable[str]) -> None:
    (folder / "1").mkdir(parents=True)
    (folder / "config.pbtxt").write_text("\n".join(lines) + "\n")


def _tensors(kind: str, specs: Iterable[TensorSpec]) -> list[str]:
    return [
        f'{kind} [{{ name: "{s.name}" data_type: {_TYPES[s.dtype]} '
        f"dims: [{', '.join(str(d) if isinstance(d, int) else '-1' for d in s.shape)}] }}]"
        for s in specs
    ]


def _parameter(key: str, value: str) -> str:
    return f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}'


def _step(model: str, inputs: Iterable[TensorSpec], outputs: Iterable[TensorSpec]) -> list[str]:
    maps = [f'    input_map {{ key: "{s.name}" value: "{s.name}" }}' for s in inputs]
    maps += [f'    output_map {{ key: "{s.name}" value: "{s.name}" }}' for s in outputs]
    return ["  step {", f'    model_name: "{model}"', "    model_version: -1", *maps, "  }"]
