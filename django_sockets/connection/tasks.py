"""Starts the background tasks of connections."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

__all__ = ["spawn"]

T = TypeVar("T")

_tasks: set[asyncio.Task[Any]] = set()
"""Strong references to running tasks, because an event loop keeps only weak ones."""


def spawn(work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """Run a coroutine in a new task on the running loop, and keep a reference until it ends."""
    task = asyncio.get_running_loop().create_task(work)
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)
    return task
