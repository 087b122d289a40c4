"""``python -m tests.binding_stubs DIR``: type stubs of the TensorRT and TensorRT-RTX bindings, for mypy.

The bindings are compiled modules without stubs, so mypy would take every attribute and argument of theirs for right.
``stubgen`` reads their real signatures. Those of full TensorRT need its libraries to import, which no package
index has; to read signatures it is enough that the symbols exist, so empty libraries stand in for them.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

_LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")
_PREFIXES = ("create", "get", "init")  # of the C functions that the libraries export: createInferBuilder_INTERNAL ...


def main(folder: Path) -> None:
    """Write stubs of ``tensorrt`` and ``tensorrt_rtx`` below ``folder``."""
    bindings = _package("tensorrt_bindings")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        libraries = _stand_ins(bindings / "tensorrt.so", Path(scratch))
        _stubgen(folder, "--inspect-mode", "-m", "tensorrt_bindings.tensorrt", LD_LIBRARY_PATH=str(libraries))
    _stubgen(folder, "--inspect-mode", "-m", "tensorrt_rtx_bindings.tensorrt_rtx")
    _stubgen(folder, "--parse-only", str(bindings / "plugin"))
    for name in ("tensorrt", "tensorrt_rtx"):
        stub = folder / f"{name}_bindings" / f"{name}.pyi"
        # One signature has a parameter without a default after some with; mypy refuses the whole file for it.
        stub.write_text(re.sub(r"(= \.\.\., \w+: [\w.]+)\)", r"\1 = ...)", stub.read_text()))
        _stubgen(folder, "--parse-only", str(_package(f"{name}_bindings") / "__init__.py"))
        _write(folder / name / "__init__.pyi", f"from {name}_bindings import *\n__version__: str\n")
    # The package fills itself with what its modules declare public while it is imported, which no reader sees.
    public = ("_lib", "_tensor", "_top_level")
    _write(
        folder / "tensorrt" / "plugin.pyi", "".join(f"from tensorrt_bindings.plugin.{m} import *\n" for m in public)
    )


def _package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise SystemExit(f"error: no module '{name}'; pip install 'ugsep[dev]'")
    return Path(spec.origin).parent


def _stand_ins(module: Path, folder: Path) -> Path:
    """Compile one library with every function that ``module`` wants of TensorRT, under all three names."""
    listing = subprocess.run(["nm", "-D", "--undefined-only", module], check=True, capture_output=True, text=True)
    symbols = [line.split()[-1] for line in listing.stdout.splitlines()]
    wanted = [name for name in symbols if name.startswith(_PREFIXES) and "@" not in name]
    source = folder / "stand_in.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in wanted))
    for library in _LIBRARIES:
        name = f"lib{library}.so.11"
        subprocess.run(["cc", "-shared", "-fPIC", source, "-o", folder / name, f"-Wl,-soname,{name}"], check=True)
    return folder


def _stubgen(folder: Path, *arguments: str, **environment: str) -> None:
    command = [str(Path(sys.executable).with_name("stubgen")), "--quiet", *arguments, "-o", str(folder)]
    subprocess.run(command, check=True, env={**os.environ, **environment})


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
