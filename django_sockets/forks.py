"""State that a forked child process must not share with its parent.

Any module may import this one. It imports nothing of this package. On a platform without `fork`
(Windows) nothing here has an effect.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["PerProcess", "after_fork_in_child"]

T = TypeVar("T")


def after_fork_in_child(call: Callable[[], object]) -> None:
    """Call `call()` in each forked child."""
    register = getattr(os, "register_at_fork", None)
    if register is not None:
        register(after_in_child=call)


class PerProcess(Generic[T]):
    """A value that each forked child creates for itself.

    The child keeps a reference to the parent's value and never uses it: a thread that the child
    does not have may hold its lock, and closing its sockets would disturb the parent.

    Args:
        create: makes the value, without arguments; usually a class.

    Attributes:
        current: the value of this process.
    """

    def __init__(self, create: Callable[[], T]) -> None:
        self.current = create()
        self._create = create
        self._abandoned: list[T] = []
        after_fork_in_child(self._after_fork)

    def _after_fork(self) -> None:
        self._abandoned.append(self.current)
        self.current = self._create()
