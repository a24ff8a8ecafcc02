"""A password is in no error, in nothing that an error refers to, and in no log line.

Error reporters and Django's debug page print the local variables of every frame of a traceback and
of its causes' tracebacks. So the tests look at these, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import traceback
import types
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import hiredis
import pytest

from django_sockets import open_broker, open_hub
from django_sockets.backends.client.credentials import load_provider
from django_sockets.broadcaster import Broadcaster
from django_sockets.conf import load_config
from django_sockets.errors import AuthError, ConfigurationError, DjangoSocketsError
from django_sockets.sockets import BaseSocketServer
from django_sockets.testing.contract.base import with_options
from django_sockets.testing.ports import HOST, free_port
from django_sockets.testing.sentinels import SentinelTrio
from django_sockets.testing.servers import CacheServer, ValkeyServer
from django_sockets.url import BrokerURL

SECRET = "hunter2-s3cret"


def all_that_is_told(error: BaseException) -> Iterator[str]:
    """All that an error report can show: texts, arguments and frames, also those of causes."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        yield f"{one} {one!r} {one.args!r} {vars(one)!r}"
        frames = one.__traceback__
        while frames is not None and frames.tb_frame.f_code.co_filename == __file__:
            frames = frames.tb_next  # This module knows the secret.
        report = traceback.TracebackException(type(one), one, frames, capture_locals=True)
        yield from report.format(chain=False)
        for frame, _ in traceback.walk_tb(frames):
            for name, value in frame.f_locals.items():
                yield f"{frame.f_code.co_name}: {name} = {value!r}"
        waiting += [one.__cause__, one.__context__]


def assert_no_secret(error: BaseException, log: str = "") -> None:
    for text in [*all_that_is_told(error), log]:
        assert SECRET not in text
        assert SECRET[:7] not in text


def raised(call: Callable[[], object]) -> BaseException:
    try:
        call()
    except DjangoSocketsError as exc:
        return exc
    raise AssertionError("nothing was raised")


async def raised_by(attempt: Coroutine[Any, Any, object]) -> BaseException:
    try:
        await attempt
    except DjangoSocketsError as exc:
        return exc
    raise AssertionError("nothing was raised")


async def subscribe(hub: Any) -> None:
    async with hub.subscribe("room"):
        pass


# URLs and options that are wrong

WRONG_URLS = [
    "redis://:{}@h:99999",
    "redis://me:{}@h?nonsense=1",
    "redis://me:{}/x@h",
    "redis://me:{}?x@h",
    "redis://me:{}?x=y@h",
    "redis://me:x/{}@h",
    "redis://me:x?{}@h",
    "redis://me:x?{}=y@h",
    "redis://me:x@y/{}@h:6379",
    "redis://me:x@y?{}@h:6379",
    "redis://me:x@y?{}=z@h:6379",
    "redis://me:12/{}@h:6379/0",
    "redis://me:12?a={}@h:6379/0",
    "redis://me:12?{}=a@h:6379/0",
    "redis://me:x@/{}@h",
    "redis+sentinel://me:x@y/{}@h/main",
    "redis+unix://me:x@y/{}@/tmp/s.sock",
    "memory://me:x@y/{}@h",
    "me:{}@h:6379",
    "me:x@{}/y@h:6379",
    "redis:/:{}@h",
    "redis:/:{}",
    "redis//:{}",
    "redis//h?password={}",
    "redis:/me:x@h?password={}",
    "redis:{}",
    "{}",
    "redis://me:{}",
    "reddis://me:{}@h",
    "redis://h?password={}",
    "redis://h?pasword={}",
    "redis://h?sentinel_pasword={}",
    "redis+sentinel://h/main?sentinel_pasword={}",
    "redis+sentinel://h/main?sentinel_password=x&{}",
    "redis+sentinel://h/main?sentinel_password=x&{}=",
    "redis+sentinel://h/main?sentinel_password=x&{}=y",
    "redis+sentinel://h/main?sentinel_password={}&nonsense=1",
    "redis+sentinel://h?sentinel_password={}",
    "redis+sentinel://h/main/x?sentinel_password={}",
    "redis://h?{}",
    "redis://h?{}&{}",
    "redis://h?prefix=x&prefix={}",
    "redis://h?nonsense={}&nonsense={}",
    "redis://h?prefix=a b{}",
    "redis://h?connect_timeout_seconds={}",
    "redis://h?max_payload_bytes={}",
    "redis://h?connection_max_age_seconds={}",
    "redis://h?protocol={}",
    "redis://h?driver={}",
    "redis://h?auth={}",
    "redis://h?auth=file&auth_file=",
    "redis://me:{}@h?auth=env",
    "redis://h?region={}",
    "redis://h?tls_verify={}",
    "redis://h?ssl_cert_reqs={}",
    "rediss://h?tls_verify={}",
    "rediss://h?tls_ca_file=/{}",
    "rediss://h?tls_key_file={}",
    "rediss://me:{}@h?driver=glide&tls_verify=ca",
    "redis+serverless://me:{}@h/1",
    "rediss://u@h?auth=iam&region={}.&cache=c",
    "rediss://u@h?auth=iam&region=eu&cache={}/",
    "rediss://u@h?auth=iam&region=eu&cache=c&service={}",
    "rediss://u@h?auth=iam&region=eu&cache=c&serverless={}",
    "redis://me:{}@a,b",
    "redis://me:{}@h/main",
    "redis+cluster://me:{}@h/1",
    "redis+cluster://me:{}@",
    "redis+unix://me:{}@",
    "redis://me:{}@a redis://me:{}@a",
    "redis://me:{}@a redis://me:{}@b:x",
    "fakeredis://me:{}@h?x=1",
    "memory://?x={}",
]


class Socket(BaseSocketServer):
    """Has a configuration that is wrong."""


def socket_with(config: Any) -> object:
    return type("Wrong", (Socket,), {"config": config})({})


@pytest.mark.parametrize("template", WRONG_URLS)
async def test_a_url_that_is_wrong(template: str) -> None:
    text = template.replace("{}", SECRET)
    assert_no_secret(raised(lambda: open_broker(text)))


WRONG_CONFIGS: list[Any] = [
    f"redis://me:{SECRET}@h:x",
    [f"redis://me:{SECRET}@h:x"],
    [f"redis://me:{SECRET}@h", f"redis://me:{SECRET}@h"],
    {"url": f"redis://me:{SECRET}@h:x"},
    {"url": f"redis://me:{SECRET}@h", "nonsense": 1},
    {"hosts": [{"address": f"redis://me:{SECRET}@h:x"}]},
    {"hosts": [{"address": "redis://h:x", "password": SECRET}]},
    {"hosts": [{"host": f"redis://:{SECRET}@h", "port": 1}]},
    {"hosts": [{"password": SECRET}]},
    {"hosts": [{"master_name": "m", "sentinels": [("h", "x")], "password": SECRET}]},
    {
        "hosts": [
            {
                "master_name": "m",
                "sentinels": [("h", "x")],
                "sentinel_kwargs": {"password": SECRET},
            }
        ]
    },
]


@pytest.mark.parametrize("config", WRONG_CONFIGS, ids=range(len(WRONG_CONFIGS)))
async def test_a_configuration_that_is_wrong(config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for entrance in (load_config, open_hub, Broadcaster, socket_with):
        assert_no_secret(raised(lambda entrance=entrance: entrance(config)))  # type: ignore[misc]
    if isinstance(config, str):
        monkeypatch.setenv("DJANGO_SOCKETS_URL", config)
        assert_no_secret(raised(load_config))


WRONG_DRIVER_OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("redis://h", {"pasword": SECRET}),
    ("redis://h", {"password": SECRET, "nonsense": 1}),
    ("redis://h", {"password": SECRET, "db": "x"}),
    ("redis://h", {"password": SECRET, "protocol": 7}),
    ("redis://h", {"protocol": SECRET}),
    ("redis://h", {"db": SECRET}),
    ("rediss://h", {"password": SECRET, "ssl_cert_reqs": "nonsense"}),
    ("rediss://h", {"ssl_cert_reqs": SECRET}),
    ("rediss://h", {"ssl_password": SECRET, "ssl_certfile": "/no/file"}),
    ("rediss://h", {"ssl_ca_data": SECRET}),
    ("redis+sentinel://h/main", {"password": SECRET, "nonsense": 1}),
    ("redis+cluster://h", {"password": SECRET, "nonsense": 1}),
]


@pytest.mark.parametrize(("text", "options"), WRONG_DRIVER_OPTIONS)
async def test_driver_options_that_are_wrong(text: str, options: dict[str, Any]) -> None:
    error = raised(lambda: open_broker(load_config([{"address": text, **options}]).url))
    assert isinstance(error, ConfigurationError)
    assert_no_secret(error)


# Servers that cannot be used


@contextlib.asynccontextmanager
async def listener(serve: Any) -> AsyncIterator[int]:
    served: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(serve(reader, writer))
        served.add(task)
        task.add_done_callback(lambda _: writer.transport.abort())

    server = await asyncio.start_server(accept, HOST, 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in served:
            task.cancel()
        await asyncio.gather(*served, return_exceptions=True)


async def echo_in_errors(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Refuses every command and repeats its arguments, as Redis 5 and 6 do."""
    parser = hiredis.Reader()
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            parser.feed(data)
            while (command := parser.gets()) is not False:
                name, *arguments = (word.decode() for word in command)
                told = " ".join(f"`{argument}`," for argument in arguments)
                text = f"-ERR unknown command `{name}`, with args beginning with: {told} \r\n"
                writer.write(text.encode())
    writer.close()


async def silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while await reader.read(65536):
            pass
    writer.close()


async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


async def nonsense(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    writer.close()


async def odd_replies(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers the handshake with replies of the wrong type, and nothing else."""
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(b":1\r\n" * (data.count(b"HELLO") + data.count(b"AUTH")))
            writer.write(b"*1\r\n:7\r\n*-1\r\n" * data.count(b"ROLE"))
    writer.close()


@pytest.fixture(scope="module")
def guarded() -> Iterator[CacheServer]:
    """A server with a password."""
    with ValkeyServer(password="another") as server:
        yield server


SCHEMES = {
    "one node": "redis://me:{}@{}",
    "one node, RESP3 only": "redis://me:{}@{}?protocol=3",
    "one node, RESP2 only": "redis://me:{}@{}?protocol=2",
    "TLS": "rediss://me:{}@{}",
    "sentinels": "redis+sentinel://me:x@{}/main?sentinel_password={}",
    "cluster": "redis+cluster://me:{}@{}",
    "serverless": "redis+serverless://me:{}@{}",
    "several": "redis://me:{}@{} redis://you:{}@127.0.0.3:1",
    "glide": "redis://me:{}@{}?driver=glide",
    "glide cluster": "redis+cluster://me:{}@{}?driver=glide",
}
TROUBLES = {
    "echo": echo_in_errors,
    "silence": silence,
    "hang-up": hang_up,
    "nonsense": nonsense,
    "odd replies": odd_replies,
    "refused": None,
    "wrong password": None,
}


@pytest.mark.parametrize(
    ("scheme", "trouble"),
    [
        (scheme, trouble)
        for scheme in SCHEMES
        for trouble in TROUBLES
        if scheme == "one node" or trouble in ("echo", "silence", "wrong password")
    ],
)
async def test_a_server_that_cannot_be_used(
    guarded: CacheServer, caplog: pytest.LogCaptureFixture, scheme: str, trouble: str
) -> None:
    caplog.set_level(logging.DEBUG)
    async with contextlib.AsyncExitStack() as stack:
        serve = TROUBLES[trouble]
        if serve is not None:
            port = await stack.enter_async_context(listener(serve))
        else:
            port = guarded.port if trouble == "wrong password" else free_port()
        parts = SCHEMES[scheme].replace("@{}", f"@{HOST}:{port}").replace("{}", SECRET).split(" ")
        texts = [
            with_options(
                part,
                connect_timeout_seconds=0.2,
                publish_timeout_seconds=0.3,
                subscribe_timeout_seconds=0.3,
            )
            for part in parts
        ]
        hub = await stack.enter_async_context(open_hub(" ".join(texts)))
        broker = open_broker(" ".join(texts))
        stack.push_async_callback(broker.aclose)
        inspect = broker.inspect()  # type: ignore[attr-defined]
        for attempt in (hub.publish("room", b"x"), subscribe(hub), inspect):
            try:
                told = repr(await attempt)
            except DjangoSocketsError as exc:
                assert_no_secret(exc, caplog.text)
            else:  # Several hosts make a report of what is wrong, and odd replies may do.
                assert trouble == "odd replies" or len(texts) > 1
                assert SECRET not in told + caplog.text
    for record in caplog.records:
        if record.exc_info:
            assert_no_secret(record.exc_info[1])  # type: ignore[arg-type]


async def test_sentinels_that_refuse_the_password(
    redis_sentinels: SentinelTrio, caplog: pytest.LogCaptureFixture
) -> None:
    bare = redis_sentinels.url.partition("?")[0]
    for text in (
        with_options(bare, sentinel_username="bob", sentinel_password=SECRET),
        redis_sentinels.url.replace("p%40ss%3Aw%25rd", SECRET),
    ):
        url = with_options(text, publish_timeout_seconds=1, subscribe_timeout_seconds=0.5)
        async with open_hub(url) as hub:
            for attempt in (hub.publish("room", b"x"), subscribe(hub)):
                assert_no_secret(await raised_by(attempt), caplog.text)


async def test_a_socket_that_is_not_there(tmp_path: Path) -> None:
    url = f"redis+unix://me:{SECRET}@{tmp_path}/no.sock?publish_timeout_seconds=1"
    async with open_hub(url) as hub:
        assert_no_secret(await raised_by(hub.publish("room", b"x")))


async def test_a_fake_server_that_wants_another_password() -> None:
    pytest.importorskip("fakeredis")
    async with open_hub(f"fakeredis://me:{SECRET}@{free_port()}") as hub:
        with contextlib.suppress(DjangoSocketsError):
            await hub.publish("room", b"x")
            return  # It takes any password.
        assert_no_secret(await raised_by(hub.publish("room", b"x")))


# Providers of credentials


async def ask(text: str, **driver_options: object) -> BaseException:
    url = BrokerURL.parse(text, driver_options)
    provider = load_provider(url, dict(url.extra))
    error = await raised_by(provider.credentials())  # type: ignore[arg-type]
    assert isinstance(error, AuthError)
    return error


async def test_a_file_that_is_no_secret(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text(f"a\nb\n{SECRET}", encoding="utf-8")
    assert_no_secret(await ask(f"redis://h?auth=file&auth_file={path}"))
    assert_no_secret(await ask(f"redis://h?auth=file&auth_file=/{SECRET}"))


async def test_a_provider_of_the_driver_that_fails() -> None:
    class Provider:
        async def get_credentials_async(self) -> tuple[str, ...]:
            password = SECRET
            raise RuntimeError(password)

    assert_no_secret(await ask("redis://h", credential_provider=Provider()))


async def test_keys_of_aws_that_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    session = pytest.importorskip("botocore.session")

    def get_credentials(self: object) -> None:
        key = SECRET
        raise RuntimeError(f"the key {key} is refused")

    monkeypatch.setattr(session.Session, "get_credentials", get_credentials)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    text = "rediss://h?auth=iam&region=eu-west-1&cache=c&user=u"
    assert_no_secret(await ask(text))


@pytest.mark.parametrize("auth", ["entra", "google"])
async def test_an_sdk_that_fails(monkeypatch: pytest.MonkeyPatch, auth: str) -> None:
    def fail(*_: object, **__: object) -> None:
        token = SECRET
        try:
            raise ValueError(token)
        except ValueError as exc:
            raise RuntimeError("no token of eyJhdXRo.eyJodW50ZXIy.c2VjcmV0") from exc

    for name in ("azure", "google", "google.auth.transport"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    for name, attribute, value in (
        ("azure.identity", "DefaultAzureCredential", fail),
        ("google.auth", "default", fail),
        ("google.auth.transport.requests", "Request", fail),
    ):
        module = types.ModuleType(name)
        setattr(module, attribute, value)
        monkeypatch.setitem(sys.modules, name, module)
    error = await ask(f"rediss://h?auth={auth}")
    assert_no_secret(error)
    assert "eyJ" not in str(error)


async def test_a_plus_in_a_password_is_a_plus() -> None:
    url = BrokerURL.parse(
        "redis+sentinel://h/main?sentinel_password=a+b%2Bc%20d&sentinel_username=x+y"
    )
    assert dict(url.extra) == {"sentinel_password": "a+b+c d", "sentinel_username": "x+y"}
    assert BrokerURL.parse("redis+sentinel://h/main?sentinel_password=").extra == (
        ("sentinel_password", ""),
    )
