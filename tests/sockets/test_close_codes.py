"""A close code that a close frame cannot contain is an error of the call, not of the server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from django_sockets import closing
from django_sockets.sockets import BaseSocketServer
from django_sockets.testing.client import SocketClient

URL = "memory://close-codes"

NEVER_SENT = [
    0,
    -1,
    999,
    1004,
    1005,
    1006,
    1015,
    1016,
    2999,
    5000,
    65536,
    True,
    None,
    "1000",
    1000.0,
]
STANDARD = [1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014]
OWN = [1000, 3000, 4401, 4999]

CALLS: dict[str, Callable[[BaseSocketServer, Any], Any]] = {
    "close": lambda socket, code: socket.close(code),
    "async_close": lambda socket, code: socket.async_close(code),
    "close_sockets": lambda socket, code: closing.close_sockets(code=code, user=7, config=URL),
    "async_close_sockets": lambda socket, code: closing.async_close_sockets(
        code=code, user=7, config=URL
    ),
    "close_local_sockets": lambda socket, code: closing.close_local_sockets(code=code, user=7),
}


class Asked(BaseSocketServer):
    """Closes itself as the client says."""

    config = URL
    by: str

    async def connect(self) -> None:
        self.tags["user"] = "7"

    async def receive(self, data: Any) -> None:
        call, code = data
        try:
            result = CALLS[call](self, code)
            if asyncio.iscoroutine(result):
                await result
        except ValueError as exc:
            await self.async_send(str(exc))


@pytest.mark.parametrize("call", CALLS)
async def test_a_wrong_code_is_an_error_of_the_call_and_closes_nothing(call: str) -> None:
    wrong = NEVER_SENT + ([] if call in ("close", "async_close") else STANDARD)
    async with SocketClient(Asked.as_asgi) as client:
        for code in wrong:
            await client.send_json([call, code])
            problem = await client.receive_json()
            assert problem.startswith(f"close code {code!r}: use 1000, or a number from 3000")


@pytest.mark.parametrize("call", CALLS)
async def test_a_code_that_a_frame_may_carry_is_sent(call: str) -> None:
    right = OWN + (STANDARD if call in ("close", "async_close") else [])
    for code in right:
        async with SocketClient(Asked.as_asgi) as client:
            await client.send_json([call, code])
            assert await client.receive_close() == code
