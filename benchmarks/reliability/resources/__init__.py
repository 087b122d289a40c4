"""Commands short of what they need: disk, memory, descriptors, rights, names, a terminal, a network, or time."""

__all__ = ["campaign"]
