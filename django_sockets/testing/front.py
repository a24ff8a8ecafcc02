"""The endpoint of an emulated serverless cache: a program that accepts TLS for one cluster node.

`serverless` runs this file as a process of its own, so that it can be paused and killed like a
server. It passes on the commands of clients. A command that such a service refuses is replaced by a
script that only returns the service's error, so that the replies keep their order. The data of the
node are passed on unread. Each refused command is written as a line to the file `REFUSED_FILE`.

This file imports nothing of this package.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import sys
from pathlib import Path

import hiredis

__all__ = ["REFUSED_FILE", "refusal"]

REFUSED_FILE = "refused"

_HOST = "127.0.0.1"
_CHUNK_BYTES = 65536
_UNKNOWN = {
    *("PSUBSCRIBE PUNSUBSCRIBE CONFIG MONITOR DEBUG SAVE BGSAVE".split()),
    *("REPLICAOF SLAVEOF SHUTDOWN MIGRATE".split()),
}
_SCRIPTS = {"EVAL", "EVALSHA", "EVAL_RO", "EVALSHA_RO", "FCALL", "FCALL_RO"}
_ANSWER = "return redis.error_reply(ARGV[1])"


def refusal(command: list[bytes]) -> str | None:
    """The error with which the service refuses the command, or None.

    https://docs.aws.amazon.com/AmazonElastiCache/latest/dg/SupportedCommands.html
    """
    name = command[0].decode(errors="replace")
    if name.upper() in _UNKNOWN:
        words = "".join(f"'{word.decode(errors='replace')[:128]}' " for word in command[1:])
        return f"ERR unknown command '{name}', with args beginning with: {words}"
    if name.upper() in _SCRIPTS and command[2:3] == [b"0"]:
        return "ERR Script attempted to access keys that were not declared"
    return None


async def _pass_on(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, refused: Path
) -> None:
    """Pass the commands of the client on to the node."""
    parser = hiredis.Reader()
    while chunk := await reader.read(_CHUNK_BYTES):
        parser.feed(chunk)
        while (command := parser.gets()) is not False:
            error = refusal(command)
            if error is not None:
                with refused.open("ab") as log:
                    log.write(command[0].upper() + b"\n")
                command = [b"EVAL", _ANSWER, b"0", error]
            writer.write(hiredis.pack_command(tuple(command)))
        await writer.drain()


async def _bring_back(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pass the data of the node on to the client."""
    while chunk := await reader.read(_CHUNK_BYTES):
        writer.write(chunk)
        await writer.drain()


async def serve(port: int, node_port: int, max_age_seconds: float, folder: Path) -> None:
    """Listen on the port until the process ends. With `max_age_seconds=0` there is no age limit."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem", folder / "server.key")

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers = [writer]
        try:
            from_node, to_node = await asyncio.open_connection(_HOST, node_port)
            writers.append(to_node)
            ways = [
                asyncio.ensure_future(_pass_on(reader, to_node, folder / REFUSED_FILE)),
                asyncio.ensure_future(_bring_back(from_node, writer)),
            ]
            # When one direction ends, or the connection is too old, both directions end.
            await asyncio.wait(
                ways, timeout=max_age_seconds or None, return_when=asyncio.FIRST_COMPLETED
            )
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
        except OSError:
            pass  # The node is down.
        finally:
            for each in writers:
                each.close()
            for each in writers:
                with contextlib.suppress(OSError):
                    await each.wait_closed()

    server = await asyncio.start_server(carry, _HOST, port, ssl=context)
    await server.serve_forever()


if __name__ == "__main__":
    _port, _node_port, _age = sys.argv[1:]
    asyncio.run(serve(int(_port), int(_node_port), float(_age), Path.cwd()))
