"""State that a forked child process must not share with its parent.

A child never closes what it inherited. It abandons it, and makes its own on first use: `PerProcess`
does this for the state of a module, `abandon_in_child` for a single object.

Any module may import this one. It imports nothing of this package. On a platform without `fork`
(Windows) nothing here has an effect.
"""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

__all__ = ["Inherited", "PerProcess", "abandon_in_child"]

logger = logging.getLogger("django_sockets")

T = TypeVar("T")


class Inherited(Protocol):
    """An object that a forked child cannot use as it is."""

    def abandon(self) -> None:
        """Forget the parent's resources without closing them. Called once in each forked child."""


def abandon_in_child(inherited: Inherited) -> None:
    """Call `inherited.abandon()` in each forked child, as long as the object exists."""
    _inherited.add(inherited)


_inherited: weakref.WeakSet[Inherited] = weakref.WeakSet()
_states: list[Inherited] = []
"""The `PerProcess` objects, which live as long as the process."""


def _abandon_all() -> None:
    for inherited in [*_states, *_inherited]:
        try:
            inherited.abandon()
        except Exception:
            logger.exception("%r failed in a forked process", inherited)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_abandon_all)


class PerProcess(Generic[T]):
    """A value that each forked child creates for itself.

    The child keeps a reference to the parent's value and never uses it: a thread that the child
    does not have may hold its lock, and closing its sockets would disturb the parent.

    Args:
        create: makes the value, without arguments; usually a class.
        on_abandon: called in the child with the value of the parent.

    Attributes:
        current: the value of this process. A test of this library may replace it.
    """

    def __init__(
        self, create: Callable[[], T], on_abandon: Callable[[T], object] | None = None
    ) -> None:
        self.current = create()
        self._create = create
        self._on_abandon = on_abandon
        self._abandoned: list[T] = []
        _states.append(self)

    def abandon(self) -> None:
        """Replace the value of the parent. Called in a forked child."""
        inherited, self.current = self.current, self._create()
        self._abandoned.append(inherited)
        if self._on_abandon is not None:
            self._on_abandon(inherited)
