"""An example call of a model: its tensors by name, and everything else as constants."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from graphs.base.errors import UgsepError

_DATA = torch.Tensor.data.__get__  # type: ignore[attr-defined]  # a descriptor
_SET_DATA = torch.Tensor.data.__set__  # type: ignore[attr-defined]  # a descriptor
_QUANTIZED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized")
_CONSTANTS = (type(None), bool, int, float, str)


@dataclass(frozen=True)
class Call:
    """The arguments of a call, flattened: the ``leaves`` of ``spec``, of which ``tensors`` have ``names``.

    ``constants`` are the names of the others: None, numbers and strings.
    """

    names: tuple[str, ...]
    leaves: tuple[Any, ...]
    spec: pytree.TreeSpec
    constants: tuple[str, ...] = ()

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors, in order."""
        return [leaf for leaf in self.leaves if isinstance(leaf, Tensor)]

    def with_tensors(self, tensors: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the positional and keyword arguments of the same call with other tensors, or what acts as such."""
        given = iter(tensors)
        args, kwargs = pytree.tree_unflatten(
            [next(given) if isinstance(leaf, Tensor) else leaf for leaf in self.leaves], self.spec
        )
        return args, kwargs

    def flat(self, module: nn.Module) -> nn.Module:
        """Return the module with a forward that takes the list of tensors, whatever the signature of its own.

        It shares parameters and submodules with ``module``, under the same names.
        """
        original = module.forward
        if isinstance(module, fx.GraphModule):  # torch.export runs the graph of one, and not its forward
            flat = nn.Module()
            flat.__dict__.update(module.__dict__)
        else:
            flat = copy.copy(module)

        def forward(tensors: list[Tensor]) -> Any:
            args, kwargs = self.with_tensors(tensors)
            with _DetachedData():
                return without_dataclasses(original(*args, **kwargs))

        flat.forward = forward
        return flat


class _DetachedData(TorchFunctionMode):
    """Takes ``tensor.data`` as ``tensor.detach()``; a trace does not see the former."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func == _SET_DATA:
            raise UgsepError(
                "the model assigns to the .data of a tensor, which a trace does not see; compute a new tensor, or "
                "write into it with copy_"
            )
        return args[0].detach() if func == _DATA else func(*args, **(kwargs or {}))


def without_dataclasses(value: Any) -> Any:
    """Return what a model returned, with dataclasses as dicts of their fields that are not None."""
    if dataclasses.is_dataclass(value) and type(value) not in pytree.SUPPORTED_NODES:
        found = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return {name: without_dataclasses(v) for name, v in found.items() if v is not None}
    if type(value) is dict:
        return {name: without_dataclasses(v) for name, v in value.items()}
    if type(value) in (list, tuple):
        return type(value)(without_dataclasses(v) for v in value)
    return value


def scripted_part(module: nn.Module) -> str:
    """Return the name of a TorchScript submodule, '' if there is none."""
    return next((name for name, part in module.named_modules() if isinstance(part, torch.jit.ScriptModule)), "")


def _check_parts(module: nn.Module) -> None:
    for name, part in module.named_modules():
        if type(part).__module__.startswith(_QUANTIZED):
            raise UgsepError(
                f"submodule '{name}' is quantized by PyTorch ({type(part).__name__}); pass the float model, which is "
                "quantized later"
            )
    for name, parameter in module.named_parameters():
        if torch.nn.parameter.is_lazy(parameter):
            raise UgsepError(
                f"parameter '{name}' of a lazy module has no shape yet; call the model once on the example inputs in "
                "the factory"
            )


def unwrapped(module: nn.Module) -> nn.Module:
    """Return the module inside wrappers that only change how it runs.

    Raises:
        UgsepError: a TorchScript module, which has no Python forward to trace, or one with quantized or lazy parts.
    """
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel, torch.optim.swa_utils.AveragedModel)
    while True:
        if isinstance(module, torch.jit.ScriptModule):
            raise UgsepError(
                "the model is a TorchScript module, which cannot be traced again; pass the original nn.Module"
            )
        if isinstance(module, torch._dynamo.OptimizedModule):
            module = module._orig_mod
        elif isinstance(module, wrappers):
            module = module.module
        else:
            _check_parts(module)
            return module


def call_of(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """Return an example call.

    A tensor argument has the argument's name; a tensor in a container has its key if all keys are unique, else its
    dotted path.

    Raises:
        UgsepError: arguments that the model's forward does not take, a value that is neither a tensor nor a constant,
            or a tensor without rows.
    """
    signature = inspect.signature(module.forward)
    parameters = list(signature.parameters.values())
    positional = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    paths: list[tuple[str, ...]] = []
    constants: list[str] = []
    in_sequence: list[bool] = []  # a position alone is not a name
    found, spec = pytree.tree_flatten_with_path((args, kwargs))
    for path, leaf in found:
        keys = [str(getattr(k, "key", getattr(k, "idx", k))) for k in path[1:]]
        if getattr(path[0], "idx", None) == 0:
            position = int(keys[0])
            keys[0] = positional[position] if position < len(positional) else f"arg{position}"
        name = ".".join(keys)
        if isinstance(leaf, _CONSTANTS):
            constants.append(name)
            continue
        if not isinstance(leaf, Tensor):
            raise UgsepError(f"example input '{name}' is a {type(leaf).__name__}; give tensors, numbers or None")
        if leaf.dim() == 0 or leaf.shape[0] == 0:
            raise UgsepError(f"example input '{name}' has shape {tuple(leaf.shape)}; the first axis is the batch")
        paths.append(tuple(keys))
        in_sequence.append(len(keys) > 1 and hasattr(path[-1], "idx"))
    short = [".".join(p) if by_position else p[-1] for p, by_position in zip(paths, in_sequence, strict=True)]
    unique = len(set(short)) == len(short)
    names = tuple(s if unique else ".".join(p) for s, p in zip(short, paths, strict=True))
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        raise UgsepError(f"the example inputs {list(names)} do not match the model's forward: {error}") from error
    return Call(names, tuple(leaf for _, leaf in found), spec, tuple(constants))
