"""The splitter: from one traced model to a user graph and an item graph."""

from graphs.split.proof import SplitProof, prove_split
from graphs.split.split import Split, StateTensor, Subgraph

__all__ = ["Split", "SplitProof", "StateTensor", "Subgraph", "prove_split"]
