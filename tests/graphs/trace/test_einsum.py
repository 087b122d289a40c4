"""Einsums with every axis named equal those that leave axes out."""

import pytest
import torch

from graphs.trace.einsum import explicit

EQUATIONS = {
    "ij,jk": ((2, 3), (3, 4)),
    "ji": ((2, 3),),
    "bA,b": ((2, 3), (2,)),
    "...d,...d->...": ((2, 3, 4), (2, 3, 4)),
    "b...d,de->b...e": ((2, 5, 6, 3), (3, 4)),
    "...ij,...jk": ((5, 2, 3), (6, 5, 3, 4)),  # ellipses of one and of two axes
    "i...,...": ((2, 5), (6, 5)),
    "...ii->...i": ((5, 3, 3),),
    "i... , ...->...": ((2,), (4,)),
}


@pytest.mark.parametrize("equation", EQUATIONS)
def test_an_explicit_equation_gives_the_same(equation: str) -> None:
    tensors = [torch.randn(shape, dtype=torch.float64) for shape in EQUATIONS[equation]]
    named = explicit(equation, [t.dim() for t in tensors])
    assert "." not in named
    assert "->" in named
    assert torch.equal(torch.einsum(named, tensors), torch.einsum(equation, tensors))
