"""Starting afresh in a forked child, where the platform has fork.

Anyone may import this module; it imports nothing of ours.
"""

from __future__ import annotations

import os
from collections.abc import Callable

__all__ = ["after_fork_in_child"]


def after_fork_in_child(call: Callable[[], object]) -> None:
    """Call `call()` in each forked child. Does nothing where there is no fork (Windows)."""
    register = getattr(os, "register_at_fork", None)
    if register is not None:
        register(after_in_child=call)
