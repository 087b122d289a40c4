"""KeyedJaggedTensors that a model makes of its inputs as they are: each becomes an input itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from graphs.base.errors import UgsepError
from graphs.trace.jagged.assembled import constructed_by, is_imported, keyed_jagged_tensor
from graphs.trace.jagged.padding import refuse_other_rows
from graphs.trace.jagged.pieces import KINDS


@dataclass(frozen=True)
class OfInputs:
    """A KeyedJaggedTensor, and the names of the inputs that are its values, weights, lengths or offsets, by kind."""

    keyed: Any
    inputs: Mapping[str, str]

    @property
    def argument(self) -> str:
        """The name of the whole."""
        return self.inputs["values"]


def made_of_inputs(
    module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], names: Mapping[str, Tensor]
) -> list[OfInputs] | None:
    """Call a model and return what it makes of the inputs called ``names``; None if it makes no jagged tensor.

    Raises:
        UgsepError: one is made of values that are an input, and of lengths that are none.
    """
    if not is_imported():
        return None
    calls: list[Mapping[str, Any]] = []

    def note(arguments: Mapping[str, Any], construct: Callable[[], Any]) -> Any:
        calls.append(arguments)
        return construct()

    try:
        with constructed_by(note), torch.no_grad(), torch.compiler.set_stance("force_eager"):
            module(*args, **kwargs)
    except Exception:  # whatever the model raises
        return None  # padded rows or a trace say what fails, better
    if not calls:
        return None
    of_id = {id(tensor): name for name, tensor in names.items()}
    found: dict[str, OfInputs] = {}
    for given in calls:
        inputs = {kind: of_id[id(given[kind])] for kind in KINDS if id(given.get(kind)) in of_id}
        if inputs.get("values") in found or not {"lengths", "offsets"} & set(inputs) or "values" not in inputs:
            continue
        found[inputs["values"]] = OfInputs(_keyed(given, inputs), inputs)
    return list(found.values())


def _keyed(given: Mapping[str, Any], inputs: Mapping[str, str]) -> Any:
    parts = {kind: given[kind] for kind in KINDS if given.get(kind) is not None}
    other = next((kind for kind in parts if kind not in inputs), None)
    if other is not None:
        raise UgsepError(
            f"the model makes a KeyedJaggedTensor of its input '{inputs['values']}' and {other} that are no input; "
            "make the KeyedJaggedTensor an input of the model, where each feature has a side"
        )
    if given.get("stride_per_key_per_rank") is not None:
        refuse_other_rows()
    return keyed_jagged_tensor()(keys=list(given.get("keys", [inputs["values"]])), **parts)
