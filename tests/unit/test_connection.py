"""An attempt to connect that was given up leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from typing import Any

from django_sockets.backends.client.connection import Connection
from django_sockets.backends.client.connector import open_connection
from django_sockets.errors import ConnectError
from django_sockets.url import BrokerURL


async def test_an_attempt_that_fails_while_it_is_cancelled_is_not_complained_about() -> None:
    """An outage under load would fill the log with "exception was never retrieved"."""
    begun = asyncio.Event()

    async def connect() -> Connection:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise OSError("reset by peer") from None
        raise AssertionError

    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, about: complaints.append(about))
    opening = asyncio.create_task(open_connection(BrokerURL.parse("redis://h"), "h:6379", connect))
    await begun.wait()
    opening.cancel()
    with contextlib.suppress(asyncio.CancelledError, ConnectError):
        await opening
    del opening
    await asyncio.sleep(0)
    gc.collect()
    assert complaints == []
