"""Engines in a child of ``os.fork``: to release them would mean to wait for threads that only the parent has."""

from __future__ import annotations

import ctypes
import os
import weakref

__all__ = ["keep_in_children"]


def keep_in_children(engines: object) -> None:
    """Let ``engines`` outlive every child that is forked while they exist, so that the child can exit.

    The destructor of a runtime's thread pool joins its threads, which a fork does not copy.
    """
    held = weakref.ref(engines)

    def keep() -> None:
        alive = held()
        if alive is not None:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(alive))  # a reference that nothing ever gives back

    os.register_at_fork(after_in_child=keep)
