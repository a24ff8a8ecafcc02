"""gunicorn's worker class with prepared frames.

Start it with `gunicorn -k django_sockets.servers.gunicorn.UvicornWorker mysite.asgi:application`.
It needs the package uvicorn-worker. Only gunicorn imports this module.
"""

from __future__ import annotations

from typing import Any, ClassVar

from uvicorn_worker import UvicornWorker as PlainWorker

from .installed import PROTOCOL

__all__ = ["UvicornWorker"]


class UvicornWorker(PlainWorker):  # type: ignore[misc] # it has no types
    """The worker of the package uvicorn-worker, with our protocol class for websockets."""

    CONFIG_KWARGS: ClassVar[dict[str, Any]] = {**PlainWorker.CONFIG_KWARGS, "ws": PROTOCOL}
