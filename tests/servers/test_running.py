"""`check --server ws://...`: what one handshake shows about a running server."""

from __future__ import annotations

from typing import Any

import pytest

from django_sockets.check_server import check_server
from django_sockets.errors import ConfigurationError
from django_sockets.servers.running import look_at
from django_sockets.testing.ports import free_port
from support.raw_server import Peers, run_on, serving


@pytest.mark.parametrize(
    ("options", "offers", "said"),
    [
        ({}, True, "without context"),
        ({"ws": "websockets-sansio"}, False, "another protocol class"),
        ({"ws_per_message_deflate": False}, None, "does not compress"),
    ],
)
def test_our_class_is_recognized(options: dict[str, Any], offers: bool | None, said: str) -> None:
    async def main() -> None:
        async with serving(Peers(), **options) as (url, _):
            found = await look_at(f"{url}?token=opensesame")
        assert found.offers_frames is offers
        assert said in found.advice
        assert "opensesame" not in repr(found)

    run_on("asyncio", main)


def test_a_refused_websocket_and_a_dead_server_are_unknown() -> None:
    async def refuse(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.close"})

    async def main() -> None:
        async with serving(refuse) as (url, _):
            found = await look_at(url)
        assert found.offers_frames is None
        assert "HTTP 403" in found.advice
        dead = await look_at(f"ws://user:opensesame@127.0.0.1:{free_port()}/")
        assert dead.offers_frames is None
        assert "no websocket server answers" in dead.advice
        assert "opensesame" not in repr(dead)

    run_on("asyncio", main)


def test_the_command_tells_by_its_status(capsys: pytest.CaptureFixture[str]) -> None:
    async def main() -> None:
        async with serving(Peers()) as (url, _):
            assert await check_server([url], as_json=False) == 0
            assert await check_server([url, f"ws://127.0.0.1:{free_port()}/"], as_json=True) == 1
        with pytest.raises(ConfigurationError, match="ws://"):
            await check_server(["redis://localhost"], as_json=False)
        assert await check_server([], as_json=False) == 0

    run_on("asyncio", main)
    printed = capsys.readouterr().out
    assert "prepared frames: it compresses without context" in printed
    assert '"ok": false' in printed
    assert "uvicorn " in printed
