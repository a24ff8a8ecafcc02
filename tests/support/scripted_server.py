"""A server inside the test process that speaks enough RESP3, and can send malformed replies.

    async with ScriptedServer() as server:
        broker = open_broker(server.url, sink)
        server.answers["PING"] = b"-BUSY\\r\\n"  # replaces every answer to PING, until deleted

The server acts as a primary, as a sentinel and as the only node of a cluster.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import hiredis

from django_sockets.testing.ports import HOST

__all__ = ["Conversation", "ScriptedServer", "encode"]


def encode(value: Any) -> bytes:
    """Encode str (as a simple string), bytes, int, None, list or dict in RESP3."""
    if value is None:
        return b"_\r\n"
    if isinstance(value, str):
        return b"+%s\r\n" % value.encode()
    if isinstance(value, bytes):
        return b"$%d\r\n%s\r\n" % (len(value), value)
    if isinstance(value, int):
        return b":%d\r\n" % value
    if isinstance(value, dict):
        items = [item for pair in value.items() for item in pair]
        return b"%%%d\r\n" % len(value) + b"".join(map(encode, items))
    return b"*%d\r\n" % len(value) + b"".join(map(encode, value))


def push(*values: Any) -> bytes:
    return b">%d\r\n" % len(values) + b"".join(map(encode, values))


class Conversation:
    """One connection to the server.

    Attributes:
        names: the subscribed channels.
        run_id: the run_id of the server at the time of the connect.
    """

    def __init__(self, writer: asyncio.StreamWriter, run_id: str) -> None:
        self.writer = writer
        self.run_id = run_id
        self.names: set[bytes] = set()

    def cut(self) -> None:
        self.writer.transport.abort()


class ScriptedServer:
    """A scripted server; the docstring of the module has an example.

    Attributes:
        answers: command -> the bytes to send as its answer. A callable gets the conversation and
            the command, and returns the bytes; None stands for the usual answer.
        answered: command -> how many of its answers came from `answers`.
        asked: command -> how often it arrived.
        role: the answer to ROLE.
        run_id: the run_id in INFO. After a change, new connections reach another server, and open
            connections keep theirs.
        deaf: publishes are accepted and not delivered.
        conversations: the open connections.
    """

    def __init__(self, run_id: str = "1" * 40) -> None:
        self.answers: dict[str, bytes | Callable[[Conversation, list[bytes]], bytes | None]] = {}
        self.answered: Counter[str] = Counter()
        self.asked: Counter[str] = Counter()
        self.role = b"master"
        self.run_id = run_id
        self.deaf = False
        self.conversations: set[Conversation] = set()
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.port = 0

    async def __aenter__(self) -> ScriptedServer:
        self._server = await asyncio.start_server(self._accept, HOST, 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.close()
        self.cut()
        if self._tasks:
            await asyncio.wait(list(self._tasks))

    @property
    def url(self) -> str:
        return f"redis://{HOST}:{self.port}"

    @property
    def subscribers(self) -> list[Conversation]:
        """The conversations with a subscription."""
        return [conversation for conversation in self.conversations if conversation.names]

    def cut(self) -> None:
        """Drop every connection."""
        for conversation in list(self.conversations):
            conversation.cut()

    @property
    def publishers(self) -> list[Conversation]:
        """The conversations without a subscription."""
        return [conversation for conversation in self.conversations if not conversation.names]

    def publish(self, run_id: str, name: bytes, payload: bytes, kind: str = "message") -> int:
        """Send to all subscribers of a name at one server, and return their number."""
        told = [one for one in self.conversations if name in one.names and one.run_id == run_id]
        if self.deaf:
            return len(told)
        for one in told:
            one.writer.write(push(kind.encode(), name, payload))
        return len(told)

    async def until(self, condition: Callable[[], bool], seconds: float = 10.0) -> None:
        """Wait until the condition is true. It is tested after each command."""

        async def look() -> None:
            while not condition():
                self._changed.clear()
                await self._changed.wait()

        await asyncio.wait_for(look(), seconds)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._converse(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        conversation = Conversation(writer, self.run_id)
        self.conversations.add(conversation)
        parser = hiredis.Reader()
        try:
            while data := await reader.read(65536):
                parser.feed(data)
                while (command := parser.gets()) is not False:
                    writer.write(self._answer(conversation, command))
                    self._changed.set()
        except OSError:
            pass  # Either side closed the connection.
        finally:
            self.conversations.discard(conversation)
            writer.transport.abort()
            self._changed.set()

    def _answer(self, conversation: Conversation, command: list[bytes]) -> bytes:
        verb = command[0].decode().upper()
        for key in (f"{verb} {command[1].decode().upper()}" if command[1:] else verb, verb):
            self.asked[key] += 1
        for key in list(self.answers):
            if key == verb or (command[1:] and key == f"{verb} {command[1].decode().upper()}"):
                answer = self.answers[key]
                told = answer(conversation, command) if callable(answer) else answer
                if told is not None:
                    self.answered[key] += 1
                    return told
        method = getattr(self, f"_{verb.lower()}", None)
        if method is None:
            return b"-ERR unknown command '%s'\r\n" % command[0]
        answer = method(conversation, command[1:])
        return answer if isinstance(answer, bytes) else encode(answer[0])

    # The usual answers: bytes as they are, or a tuple of one value.

    def _hello(self, *_: Any) -> Any:
        return ({b"server": b"redis", b"version": b"7.4.0", b"proto": 3, b"mode": b"standalone"},)

    def _ping(self, *_: Any) -> Any:
        return ("PONG",)

    def _client(self, *_: Any) -> Any:
        return ("OK",)

    def _select(self, *_: Any) -> Any:
        return ("OK",)

    def _role(self, *_: Any) -> Any:
        return ([self.role, 0, []],)

    def _info(self, conversation: Conversation, _: Any) -> Any:
        run_id = conversation.run_id.encode()
        return (b"# Server\r\nredis_version:7.4.0\r\nrun_id:%s\r\n" % run_id,)

    def _publish(self, conversation: Conversation, words: list[bytes]) -> Any:
        return (self.publish(conversation.run_id, words[0], words[1]),)

    def _spublish(self, conversation: Conversation, words: list[bytes]) -> Any:
        return (self.publish(conversation.run_id, words[0], words[1], "smessage"),)

    def _change(self, conversation: Conversation, names: list[bytes], kind: bytes) -> bytes:
        answer = b""
        for name in names:
            if b"unsubscribe" in kind:
                conversation.names.discard(name)
            else:
                conversation.names.add(name)
            answer += push(kind, name, len(conversation.names))
        return answer

    def _subscribe(self, conversation: Conversation, names: list[bytes]) -> bytes:
        return self._change(conversation, names, b"subscribe")

    def _unsubscribe(self, conversation: Conversation, names: list[bytes]) -> bytes:
        return self._change(conversation, names, b"unsubscribe")

    def _ssubscribe(self, conversation: Conversation, names: list[bytes]) -> bytes:
        return self._change(conversation, names, b"ssubscribe")

    def _sunsubscribe(self, conversation: Conversation, names: list[bytes]) -> bytes:
        return self._change(conversation, names, b"sunsubscribe")

    def _sentinel(self, _: Conversation, words: list[bytes]) -> Any:
        host, port = HOST.encode(), b"%d" % self.port
        if words[0].upper() == b"MASTER":
            return ({b"ip": host, b"port": port, b"config-epoch": b"1", b"num-slaves": b"1"},)
        return ([host, port],)

    def _cluster(self, _: Conversation, words: list[bytes]) -> Any:
        if words[0].upper() == b"SLOTS":
            return ([[0, 16383, [HOST.encode(), self.port, b"1" * 40, []]]],)
        return (b"cluster_state:ok\r\ncluster_current_epoch:1\r\n",)

    def _command(self, *_: Any) -> Any:
        return ([[b"ssubscribe", -2]],)
