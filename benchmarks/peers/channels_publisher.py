"""Publishes through the core layer, whose `group_send` needs more than one command.

It reads lines `<room>\t<text>` from stdin. After an empty line it prints "done".
"""

import asyncio
import sys

import channels_layer  # noqa: F401 (configures Django)
from channels.layers import get_channel_layer


async def main():
    layer = get_channel_layer()
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=1 << 20)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := (await reader.readline()).decode():
        room, _, text = line.rstrip("\n").partition("\t")
        if room:
            await layer.group_send(room, {"type": "chat.message", "text": text})
        else:
            print("done", flush=True)


asyncio.run(main())
