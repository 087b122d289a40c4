"""The checks of a bundle in a process of their own: a graph that crashes or blocks a runtime ends only that."""

__all__ = ["run"]
