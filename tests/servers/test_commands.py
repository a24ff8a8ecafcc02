"""The command lines of docs/production.md start servers that offer prepared frames."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed

from support.faults.processes import serve
from support.raw_server import soon

SOURCE = """
import json

async def application(scope, receive, send):
    if scope["type"] != "websocket":
        return
    await receive()
    await send({"type": "websocket.accept"})
    frames = scope["extensions"].get("websocket.frames")
    found = frames and {"deflate": frames["deflate"], "own": frames["send"] == send}
    await send({"type": "websocket.send", "text": json.dumps(found)})
    while (await receive())["type"] != "websocket.disconnect":
        pass
"""


@pytest.mark.parametrize(
    ("server_name", "options", "found"),
    [
        ("uvicorn-frames", (), {"deflate": 12, "own": True}),
        ("uvicorn-frames", ("--loop", "asyncio", "--http", "h11"), {"deflate": 12, "own": True}),
        ("uvicorn-frames", ("--ws-per-message-deflate", "false"), {"deflate": 0, "own": True}),
        ("uvicorn-frames", ("--log-level", "trace"), {"deflate": 12, "own": False}),
        ("uvicorn", (), None),
        ("gunicorn-frames", (), {"deflate": 12, "own": True}),
        ("gunicorn", (), None),
    ],
)
async def test_a_command_line_offers_frames_and_ends_in_order(
    server_name: str, options: tuple[str, ...], found: object, tmp_path: Path
) -> None:
    async with serve(server_name, SOURCE, tmp_path, *options) as server:
        client = await server.connect(compression="deflate")
        assert json.loads(await soon(client.recv())) == found
        assert await server.terminate(20) in (0, -15)
        with pytest.raises(ConnectionClosed):
            await soon(client.recv())
        assert client.close_code == 1012
        assert "Traceback" not in server.printed
        assert "prepared frames" not in server.printed
