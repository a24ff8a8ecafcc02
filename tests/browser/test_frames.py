"""Chromium reads prepared frames, compressed and not: a second client beside `websockets`."""

from __future__ import annotations

import base64
import json
import random
from typing import Any

from django_sockets.delivery import frames
from django_sockets.testing import LiveSocketServer

SIZES = (0, 1, 125, 126, 127, 511, 512, 4095, 65535, 65536, 200_000)
COLLECT = """
([url, count]) => new Promise((resolve, reject) => {
    const socket = new WebSocket(url);
    socket.binaryType = "arraybuffer";
    const found = [];
    socket.onmessage = ({data}) => {
        const text = typeof data === "string";
        const bytes = text ? new TextEncoder().encode(data) : new Uint8Array(data);
        let binary = "";
        for (const byte of bytes) binary += String.fromCharCode(byte);
        found.push([text, btoa(binary)]);
        if (found.length === count) resolve([socket.extensions, found]);
    };
    socket.onclose = ({code}) => reject(new Error(`closed with ${code}`));
})
"""


def messages() -> list[tuple[bool, bytes]]:
    chance = random.Random(4)
    found = []
    for size in (*SIZES, *(chance.randrange(3_000) for _ in range(100))):
        text = "".join(chance.choices('grün 日本 🎈 {"id": 17}', k=size)).encode()
        found += [(True, text), (False, chance.randbytes(size))]
    return found


def test_chromium_decodes_each_frame(chromium: Any) -> None:
    sent = messages()
    bits = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        extension = scope["extensions"]["websocket.frames"]
        bits.append(extension["deflate"])
        for is_text, payload in sent:
            opcode = frames.TEXT if is_text else frames.BINARY
            deflated = frames.deflate(payload, extension["deflate"])
            both = frames.frame(opcode, payload) + frames.frame(opcode, deflated, compressed=True)
            while not extension["write"](both):
                await extension["drain"]()
        await receive()

    context = chromium.new_context()
    with LiveSocketServer(application) as server:
        page = context.new_page()
        extensions, got = page.evaluate(COLLECT, [server.ws_url, 2 * len(sent)])
        context.close()
    assert bits == [12]
    assert "server_no_context_takeover" in json.dumps(extensions)
    expected = [message for message in sent for _ in range(2)]
    assert [(is_text, base64.b64decode(data)) for is_text, data in got] == expected
