"""The replies of servers and proxies to HELLO, for users, URLs and options of all kinds."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from django_sockets import PublishError, SubscribeError, open_hub
from django_sockets.backends.client.connection import ask
from django_sockets.backends.client.connector import Connector
from django_sockets.conf import load_config
from django_sockets.errors import AuthError, ConfigurationError, ConnectError
from django_sockets.testing.contract.faults import quick
from django_sockets.testing.ledger import listening
from django_sockets.testing.ports import HOST
from django_sockets.testing.servers import CacheServer
from django_sockets.url import BrokerURL
from support.scripted_server import Conversation, ScriptedServer

HANG_UP = "hang up"
RESET = "reset"


class Gateway:
    """Is in front of a real server, answers HELLO in its own way and passes on everything else.

    Attributes:
        to_hello: the reply to HELLO.
        hangs_up: HANG_UP or RESET, in place of a reply to HELLO.
        hang_ups: for how many connections; the next HELLO passes.
        only_new: hang up only if HELLO is the first command of the connection.
        to_auth: the reply to AUTH; None passes it on.
        connections: how many there were.
        said: the first word of each first message.
    """

    def __init__(self, server: CacheServer) -> None:
        self._server = server
        self.to_hello = b""
        self.hangs_up = ""
        self.hang_ups = 1_000_000
        self.only_new = False
        self.to_auth: bytes | None = None
        self.connections = 0
        self.said: list[str] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        upstream: asyncio.StreamWriter | None = None
        tasks: list[asyncio.Task[None]] = []
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                words = data.split(b"\r\n")
                verb = words[2].decode() if len(words) > 2 else ""
                self.said.append(verb)
                passes = bool(self.hangs_up) and not self.hang_ups
                passes = passes or (self.only_new and upstream is not None)
                if verb == "HELLO" and not passes:
                    self.hang_ups -= 1
                    if self.hangs_up == RESET:
                        sock = writer.get_extra_info("socket")
                        linger = struct.pack("ii", 1, 0)
                        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                    if self.hangs_up:
                        break
                    writer.write(self.to_hello + b"\r\n")
                    continue
                if verb == "AUTH" and self.to_auth is not None:
                    writer.write(self.to_auth + b"\r\n")
                    continue
                if upstream is None:
                    answers, upstream = await asyncio.open_connection(HOST, self._server.port)
                    tasks.append(asyncio.create_task(self._pass_on(answers, writer)))
                upstream.write(data)
        for task in tasks:
            task.cancel()
        for end in (writer, upstream):
            if end is not None:
                end.transport.abort()

    async def _pass_on(self, answers: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await answers.read(65536):
                writer.write(data)


@contextlib.asynccontextmanager
async def gateway_to(server: CacheServer) -> AsyncIterator[tuple[Gateway, str]]:
    gate = Gateway(server)
    async with await asyncio.start_server(gate.serve, HOST, 0) as listener:
        yield gate, f"{HOST}:{listener.sockets[0].getsockname()[1]}"


@pytest.fixture
async def gateway(valkey_server: CacheServer) -> AsyncIterator[tuple[Gateway, str]]:
    async with gateway_to(valkey_server) as both:
        yield both


NOT_OF_CREDENTIALS = [
    b"-ERR unknown command 'HELLO'",
    b"-ERR unknown command `HELLO`, with args beginning with: `3`, `AUTH`, `me`, `hunter2`, ",
    b"-ERR unknown command",
    b"-ERR unsupported command 'HELLO'",
    b"-ERR invalid command",
    b"-ERR command not supported",
    b"-ERR Command 'HELLO' is not allowed here",
    b"-ERR wrong number of arguments for 'hello' command",
    b"-ERR Protocol error: unexpected command",
    b"-ERR Protocol version is not an integer or out of range",
    b"-ERR syntax error",
    b"-ERR",
    b"-NOPROTO unsupported protocol version",
    b"-NOPROTO sorry, this protocol version is not supported.",
    b"-NOPERM this user has no permissions to run the 'hello' command",
    b"-NOPERM this user has no permissions to run the 'hello' command or its subcommand",
    b"-NOPERM User me has no permissions to run the 'hello' command",
    b"-DENIED command",
    b"+OK",
    b":0",
    b"$-1",
]


def connector(address: str, *, user: str = "", query: str = "") -> tuple[Connector, BrokerURL]:
    url = BrokerURL.parse(f"redis://{user}{address}?connect_timeout_seconds=3{query}")
    return Connector(url), url


@pytest.mark.parametrize("user", ["", "me:hunter2@"])
@pytest.mark.parametrize("said", [*NOT_OF_CREDENTIALS, HANG_UP, RESET], ids=repr)
async def test_any_refusal_of_hello_but_of_the_credentials_means_resp2(
    gateway: tuple[Gateway, str], said: bytes | str, user: str
) -> None:
    """Servers and proxies report an unknown command in different words."""
    gate, address = gateway
    gate.to_auth = b"+OK"
    if isinstance(said, bytes):
        gate.to_hello = said
    else:
        gate.hangs_up = said
    opener, url = connector(address, user=user)
    link = await opener.open(url.addresses[0])
    assert link.protocol == 2
    assert link.identity.role == "master"
    login = ["AUTH", "ROLE"] if user else ["ROLE"]
    if isinstance(said, bytes):
        assert gate.said == ["HELLO", *login]
    else:  # The server must show twice that it closes a connection that has worked.
        assert gate.said == ["HELLO", "HELLO", *2 * [*login, "HELLO"], *login]
    link.abort()


@pytest.mark.parametrize("user", ["", "cut:hunter2@"])
@pytest.mark.parametrize("cuts", [1, 2, 3])
@pytest.mark.parametrize("said", [HANG_UP, RESET])
async def test_connections_that_are_cut_by_chance_do_not_mean_resp2(
    gateway: tuple[Gateway, str], valkey_server: CacheServer, said: str, cuts: int, user: str
) -> None:
    """A subscriber with RESP2 could read no history and no presence as long as it lives."""
    gate, address = gateway
    gate.hangs_up, gate.hang_ups = said, cuts
    valkey_server.execute("ACL", "SETUSER", "cut", "on", ">hunter2", "+@all")
    opener, url = connector(address, user=user)
    link = await opener.open(url.addresses[0])
    assert link.protocol == 3
    (reply,) = await ask(link, [(b"CONFIG", b"GET", b"maxmemory")])
    assert isinstance(reply, dict), "the server speaks RESP3"
    link.abort()


@pytest.mark.parametrize("server", ["valkey_server", "redis_server"])
async def test_history_and_presence_are_read_although_new_connections_are_cut(
    request: pytest.FixtureRequest, server: str
) -> None:
    async with gateway_to(request.getfixturevalue(server)) as (gate, address):
        gate.hangs_up, gate.only_new = RESET, True
        config = {"url": f"redis://{address}", "history": {"": {"messages": 9, "seconds": 60}}}
        async with open_hub(config) as hub, hub.subscribe("room", presence=True) as events:
            position = events.recoveries["room"].position
            assert events.recoveries["room"].presence == {}
            await hub.publish("room", b"x")
            async with hub.subscribe("room", since=position) as later:
                assert later.recoveries["room"].recovered


SCHEMES = ["redis://{}", "redis+sentinel://{}/main", "redis+cluster://{}"]


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_no_link_has_resp2_because_new_connections_are_cut(scheme: str) -> None:
    async with ScriptedServer() as server:
        greeted: set[Conversation] = set()
        known: set[Conversation] = set()

        def hello(conversation: Conversation, _: object) -> bytes | None:
            if conversation in known:
                greeted.add(conversation)
                return None
            conversation.cut()
            return b""

        def role(conversation: Conversation, _: object) -> None:
            known.add(conversation)

        server.answers |= {"HELLO": hello, "ROLE": role}
        url = scheme.format(f"{HOST}:{server.port}")
        async with open_hub(url) as hub, listening(hub, "room") as heard:
            await hub.publish("room", b"x")
            await heard.until_payload(b"x")
            assert server.subscribers
            assert greeted >= server.conversations


@pytest.mark.parametrize("said", [b"-ERR max number of clients reached", b"-BUSY", b"-LOADING x"])
async def test_a_server_that_refuses_everything_for_a_while_does_not_mean_resp2(
    gateway: tuple[Gateway, str], said: bytes
) -> None:
    gate, address = gateway
    gate.to_hello = said
    opener, url = connector(address)
    with pytest.raises(ConnectError, match=said[1:].decode()) as caught:
        await opener.open(url.addresses[0])
    assert "protocol=2" not in str(caught.value)
    gate.hangs_up, gate.hang_ups = HANG_UP, 2
    assert gate.said == ["HELLO"]
    link = await opener.open(url.addresses[0])
    assert link.protocol == 3
    link.abort()


async def test_messages_pass_a_proxy_that_hangs_up_on_hello(gateway: tuple[Gateway, str]) -> None:
    gate, address = gateway
    gate.hangs_up = HANG_UP
    async with open_hub(f"redis://{address}") as hub, listening(hub, "room") as heard:
        await hub.publish("room", b"x")
        await heard.until_payload(b"x")


async def test_a_proxy_that_wants_auth_before_anything_else_gets_it(
    gateway: tuple[Gateway, str],
) -> None:
    """twemproxy and Envoy answer every command so until AUTH, and know no HELLO."""
    gate, address = gateway
    gate.to_hello, gate.to_auth = b"-NOAUTH Authentication required.", b"+OK"
    opener, url = connector(address, user="me:hunter2@")
    link = await opener.open(url.addresses[0])
    assert link.protocol == 2
    link.abort()


OF_CREDENTIALS = [
    (b"-WRONGPASS invalid username-password pair or user is disabled.", "me:hunter2@"),
    (b"-ERR invalid username-password pair", "me:hunter2@"),
    (b"-ERR invalid password", "me:hunter2@"),
    (b"-ERR Authentication failed", "me:hunter2@"),
    (b"-NOPERM the user hunter2 is not allowed to log in", "me:hunter2@"),
    (b"-NOAUTH HELLO must be called with the client already authenticated", ""),
    (b"-NOAUTH Authentication required.", ""),
]


@pytest.mark.parametrize(("said", "user"), OF_CREDENTIALS, ids=repr)
async def test_a_refusal_of_the_credentials_is_final(
    gateway: tuple[Gateway, str], said: bytes, user: str
) -> None:
    gate, address = gateway
    gate.to_hello = said
    opener, url = connector(address, user=user)
    with pytest.raises(AuthError) as caught:
        await opener.open(url.addresses[0])
    assert gate.connections == 1
    assert "hunter2" not in str(caught.value)
    assert ("refused the credentials" if user else "wants a password") in str(caught.value)


@pytest.mark.parametrize(
    "said",
    [
        b"-WRONGPASS invalid username-password pair or user is disabled.",
        b"-NOAUTH Authentication required.",
        b"-ERR invalid password",
        b"-ERR Client sent AUTH, but no password is set",
        b"-NOPERM this user has no permissions to run the 'auth' command",
    ],
)
async def test_credentials_refused_after_hello_was_unknown(
    gateway: tuple[Gateway, str], said: bytes
) -> None:
    gate, address = gateway
    gate.to_hello, gate.to_auth = b"-ERR unknown command 'HELLO'", said
    opener, url = connector(address, user="me:hunter2@")
    with pytest.raises(AuthError, match="refused the credentials"):
        await opener.open(url.addresses[0])


async def test_an_old_server_that_wants_a_password_and_gets_none(fresh: CacheServer) -> None:
    """With RESP2, only the next command shows it."""
    opener, url = connector(f"{HOST}:{fresh.port}")
    with pytest.raises(AuthError, match="wants a password"):
        await opener.open(url.addresses[0])


@pytest.mark.parametrize("user", [":wrong-s3cret@", "nobody:wrong-s3cret@"])
async def test_an_old_server_refuses_a_wrong_password(fresh: CacheServer, user: str) -> None:
    opener, url = connector(f"{HOST}:{fresh.port}", user=user)
    with pytest.raises(AuthError, match="refused the credentials") as caught:
        await opener.open(url.addresses[0])
    assert "wrong-s3cret" not in str(caught.value)


@pytest.fixture(scope="module")
def fresh(valkey_server: CacheServer) -> Any:
    """A server that knows no HELLO and wants a password."""
    with type(valkey_server)(password="right", without=["HELLO"]) as server:
        yield server


async def test_both_attempts_have_one_deadline(gateway: tuple[Gateway, str]) -> None:
    gate, address = gateway
    gate.to_hello, gate.to_auth = b"-ERR unknown command 'HELLO'", b""
    url = BrokerURL.parse(f"redis://me:hunter2@{address}?connect_timeout_seconds=0.5")

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            if b"HELLO" in data:
                await asyncio.sleep(0.3)
                writer.write(b"-ERR unknown command\r\n")
        writer.close()

    async with await asyncio.start_server(silent, HOST, 0) as listener:
        port = listener.sockets[0].getsockname()[1]
        url = BrokerURL.parse(f"redis://me:hunter2@{HOST}:{port}?connect_timeout_seconds=0.5")
        began = time.monotonic()
        with pytest.raises(ConnectError, match=rf"{HOST}:{port}: no answer in 0\.5 s"):
            await Connector(url).open(url.addresses[0])
        assert 0.4 < time.monotonic() - began < 3


def in_the_url(address: str, protocol: object) -> Any:
    return f"redis://{address}?protocol={protocol}"


def in_the_dict(address: str, protocol: object) -> Any:
    return {"hosts": [{"address": f"redis://{address}", "protocol": protocol}]}


FORMS = [in_the_url, in_the_dict]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("protocol", [2, 3, "2", "3"], ids=repr)
async def test_the_protocol_can_be_chosen(
    valkey_server: CacheServer, form: Callable[[str, object], Any], protocol: object
) -> None:
    config = load_config(form(f"{HOST}:{valkey_server.port}", protocol))
    link = await Connector(config.url).open(config.url.addresses[0])
    assert link.protocol == int(str(protocol))
    link.abort()
    async with open_hub(config) as hub, listening(hub, "room") as heard:
        await hub.publish("room", b"x")
        await heard.until_payload(b"x")


@pytest.mark.parametrize("form", FORMS)
async def test_a_chosen_protocol_is_not_exchanged(
    gateway: tuple[Gateway, str], form: Callable[[str, object], Any]
) -> None:
    gate, address = gateway
    gate.to_hello = b"-ERR unknown command 'HELLO'"
    url = load_config(form(address, 2)).url
    (await Connector(url).open(url.addresses[0])).abort()
    assert gate.said == ["ROLE"]
    url = load_config(form(address, 3)).url
    with pytest.raises(ConnectError, match=r"refused the handshake, HELLO: .*write protocol=2"):
        await Connector(url).open(url.addresses[0])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("protocol", [1, 4, "s3cret", "", 2.0, True], ids=repr)
def test_another_protocol_is_refused(form: Callable[[str, object], Any], protocol: object) -> None:
    with pytest.raises(ConfigurationError, match="option protocol: use 2 or 3") as caught:
        Connector(load_config(form("h", protocol)).url)
    assert "s3cret" not in str(caught.value)


async def test_a_command_that_the_user_may_not_run_is_named(valkey_server: CacheServer) -> None:
    """A missing +select must not be reported as a refused password."""
    valkey_server.execute(
        "ACL", "SETUSER", "noselect", "on", ">secret", "&*", "+@all", "-select", "-client|setname"
    )
    where = f"{HOST}:{valkey_server.port}"
    for entry, command, rule in (
        ({"address": f"redis://noselect:secret@{where}/1"}, "SELECT", "select"),
        (
            {"address": f"redis://noselect:secret@{where}", "client_name": "me"},
            "CLIENT SETNAME",
            "client|setname",
        ),
    ):
        config = load_config([entry])
        config = dataclasses.replace(config, url=quick_url(config.url))
        async with open_hub(config) as hub:
            for attempt in (hub.publish("room", b"x"), subscribe(hub)):
                with pytest.raises((PublishError, SubscribeError)) as caught:
                    await attempt
                assert f"the user may not run {command}" in str(caught.value)
                assert f"add +{rule} to its ACL rules" in str(caught.value)
                assert not isinstance(caught.value.__cause__, AuthError)


def quick_url(url: BrokerURL) -> BrokerURL:
    options = dataclasses.replace(url.options, subscribe_timeout_seconds=0.5)
    return dataclasses.replace(url, options=options)


async def subscribe(hub: Any) -> None:
    async with hub.subscribe("room"):
        pass


async def test_the_name_of_a_client_reaches_the_server(valkey_server: CacheServer) -> None:
    config = load_config([{"address": valkey_server.url, "client_name": "my-web"}])
    async with open_hub(config) as hub:
        await hub.publish("room", b"x")
        assert "name=my-web" in valkey_server.execute("CLIENT", "LIST")


async def test_a_provider_of_redis_py_is_asked(valkey_server: CacheServer) -> None:
    class Provider:
        async def get_credentials_async(self) -> tuple[str, ...]:
            return "provided", "s3cret"

    valkey_server.execute("ACL", "SETUSER", "provided", "on", ">s3cret", "&*", "+@all")
    config = load_config([{"address": quick(valkey_server.url), "credential_provider": Provider()}])
    async with open_hub(config) as hub:
        await hub.publish("room", b"x")
        assert "user=provided" in valkey_server.execute("CLIENT", "LIST")
