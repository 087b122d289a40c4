"""Load a third-party model: ``path/to/file.py:factory``."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from torch import nn

from graphs.base.errors import UgsepError, nearest
from graphs.base.regular_file import is_regular_file
from graphs.trace.trace import Example


def is_factory(name: str) -> bool:
    """Return whether a model name is a factory in a file, ``path/to/file.py:factory``."""
    return ".py:" in name or name.endswith(".py")


def load_factory(name: str) -> tuple[nn.Module, Example]:
    """Import the file and call the factory, which takes no arguments.

    The factory returns ``(module, example)``: a dict of keyword tensors, or a tuple in the order of ``forward``,
    every tensor batch first. The file may import its neighbours.

    Raises:
        UgsepError: no such file or function, a file or factory that raises, or an invalid result.
    """
    path_text, colon, function = name.rpartition(":")
    if not colon or not function.isidentifier():
        raise UgsepError(f"'{name}' is not a factory; write path/to/file.py:factory")
    path = Path(path_text)
    if not is_regular_file(path, f"give the path of the Python file with the factory '{function}'"):
        raise UgsepError(f"no file '{path_text}'; give the path of the Python file with the factory '{function}'")
    with _importing_from(path.resolve().parent):
        module = _imported(path)
        factory = getattr(module, function, None)
        if not callable(factory):
            known = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
            raise UgsepError(f"'{path.name}' has no function '{function}'{nearest(function, known)}")
        try:
            made = factory()
        except (Exception, SystemExit) as error:  # any error in the user's code is bad input
            raise UgsepError(f"factory '{name}' raised {_described(error, path)}") from error
    fine = isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], nn.Module)
    if not fine or not isinstance(made[1], (Mapping, Sequence)) or isinstance(made[1], str):
        raise UgsepError(
            f"factory '{name}' returned {_kind(made)}; return (module, example_inputs), inputs as a dict or tuple"
        )
    module_made, example = made
    return module_made, example


def _kind(made: object) -> str:
    if isinstance(made, tuple):
        return f"({', '.join(type(m).__name__ for m in made)})"
    return f"a {type(made).__name__}"


def _imported(path: Path) -> ModuleType:
    label = f"ugsep_model_{path.stem}"
    spec = importlib.util.spec_from_file_location(label, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[label] = module  # dataclasses and pickle look up their module here
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # any error in the user's file is bad input
        del sys.modules[label]
        raise UgsepError(f"importing '{path}' raised {_described(error, path)}") from error
    return module


def _described(error: BaseException, path: Path) -> str:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).name == path.name]
    line = f" at {path.name}:{frames[-1].lineno}" if frames else ""
    said = " ".join(str(error).split())
    return f"{type(error).__name__}{f': {said}' if said else ''}{line}; run the file by itself for a traceback"


@contextmanager
def _importing_from(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        if str(folder) in sys.path:
            sys.path.remove(str(folder))
