"""Tasks that a connection starts beside its handlers."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

__all__ = ["spawn"]

T = TypeVar("T")

_tasks: set[asyncio.Task[Any]] = set()
"""An event loop keeps only weak references to its tasks."""


def spawn(work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """Run a coroutine in a task of its own on the running loop; the task is kept until it ends."""
    task = asyncio.get_running_loop().create_task(work)
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)
    return task
