"""URL and driver options -> connections that have logged in.

One connector serves every server behind a URL: they share TLS settings, credentials and options,
and differ in their address only. redis-py checks the driver options and makes the TLS context; the
streams are asyncio's.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import socket
import ssl
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, cast

from redis.asyncio.connection import (
    AbstractConnection,
    Connection,
    SSLConnection,
    UnixDomainSocketConnection,
)
from redis.exceptions import RedisError

from ...errors import ConfigurationError
from ...url import Address, BrokerURL, suggest
from .addresses import addresses_of, first_success
from .connection import Link, Refused, ServerLink, open_link
from .credentials import CredentialProvider, auth_options, load_provider
from .handshake import Login, shake_hands

__all__ = ["DEFAULT_PORT", "DRIVER_OPTIONS", "Connector", "database"]

DEFAULT_PORT = 6379
TLS_OPTIONS = {
    "tls_ca_file": "file with the certificates of the authorities to trust",
    "tls_cert_file": "file with the client certificate",
    "tls_key_file": "file with the client certificate's key",
    "tls_verify": "'full' (default), 'ca' (any host name) or 'none'",
}
TLS_FILES = ("tls_ca_file", "tls_cert_file", "tls_key_file")
DRIVER_OPTIONS = {"driver": "'redis' (default), or 'glide' to publish through valkey-glide"}
PROTOCOL_OPTION = {"protocol": "2 or 3, of RESP; by default 3 where the server has it, else 2"}
_SINCE_REDIS_PY = frozenset(
    # What the published package passed on to a connection pool; all of it is ours to decide now.
    "decode_responses encoding encoding_errors health_check_interval max_connections protocol "
    "retry retry_on_error retry_on_timeout socket_connect_timeout socket_timeout timeout "
    "single_connection_client".split()
)
_LOGIN = frozenset(["credential_provider", "password", "username"])
"""Driver options that `credentials` reads; the driver's connection never sees them."""
_UNUSED = frozenset(["redis_connect_func"])
"""The driver's own way to log in, in whose place `hello` does."""
_VERIFY = ("ssl_cert_reqs", "ssl_check_hostname", "tls_verify")
_TLS_ADVICE = "write tls_verify=none (no check), tls_verify=ca (any host name) or nothing (full)"
_OTHER_SPELLINGS = {
    # Of redis-py's and Celery's URLs; what they are called here.
    "ssl_cert_reqs": _TLS_ADVICE,
    "ssl_check_hostname": _TLS_ADVICE,
    "ssl_ca_certs": "write tls_ca_file",
    "ssl_certfile": "write tls_cert_file",
    "ssl_keyfile": "write tls_key_file",
    "socket_connect_timeout": "write connect_timeout_seconds",
    "socket_timeout": "write publish_timeout_seconds and subscribe_timeout_seconds",
    "health_check_interval": "write dead_peer_seconds",
    "db": "write the number behind the host: /0",
    "username": "write it before the host: user:password@",
    "password": "write it before the host: user:password@",
}


class Connector:
    """Makes connections to the servers of one URL.

    Args:
        scheme_options: option -> one line of help, of what only this scheme knows.
        always_tls: TLS with a verified certificate, whatever the scheme's spelling.
        database: of a server that has several.
        credentials: other than the URL's.

    Attributes:
        extra: the URL's options of this scheme, as text.
        tls: whether connections are encrypted.
        provider: of the credentials.
    """

    def __init__(
        self,
        url: BrokerURL,
        scheme_options: Mapping[str, str] | None = None,
        *,
        always_tls: bool = False,
        database: int | None = None,
        credentials: CredentialProvider | None = None,
    ) -> None:
        self.url = url
        self.tls = always_tls or url.scheme.startswith("rediss")
        tls_options = dict(TLS_OPTIONS) if self.tls else {}
        if always_tls:
            tls_options.pop("tls_verify")
        known = {**tls_options, **PROTOCOL_OPTION, **auth_options(url), **(scheme_options or {})}
        self.extra = url.check_extra(known, _hints(url, tls=self.tls, always_tls=always_tls))
        self.protocol = _protocol(url, self.extra)
        self._class: type[AbstractConnection]
        if url.scheme == "redis+unix":
            self._class = UnixDomainSocketConnection
        else:
            self._class = SSLConnection if self.tls else Connection
        self._arguments = _known_driver_options(url, self._class)
        if database is not None:
            self._arguments["db"] = database
        if self.tls:
            self._arguments.update(_tls_arguments(url, self.extra))
        self.provider = credentials or load_provider(url, self.extra)
        self._driver = self._driver_connection()
        self._database = _number(url, self._driver.db)
        self._tls_state: tuple[list[int], ssl.SSLContext] | None = None
        if self.tls:
            self._tls_context()

    @property
    def glide(self) -> bool:
        """Whether the URL asks for valkey-glide as the publishing driver.

        Raises:
            ConfigurationError: it asks for another driver that we do not know.
        """
        driver = self.extra.get("driver", "redis")
        if driver not in ("redis", "glide"):
            raise ConfigurationError(f"{self.url}: option driver: use 'redis' or 'glide'")
        return driver == "glide"

    def max_age_seconds(self) -> float | None:
        """The age that a connection opened last must not reach; None for any."""
        return self.provider.max_age_seconds

    async def open(self, address: Address, *, need_primary: bool = False) -> Link:
        """Open a link to one server; see `open_link`."""
        address = Address(address.host, address.port or DEFAULT_PORT)
        connect = partial(self._open, address)
        return await open_link(self.url, str(address), connect, need_primary=need_primary)

    async def open_socket(self, path: str, *, need_primary: bool = False) -> Link:
        """Open a link over a unix socket; see `open_link`."""
        return await open_link(
            self.url, path, partial(self._open_path, path), need_primary=need_primary
        )

    async def _open(self, address: Address) -> Link:
        host, port = address.host, address.port or DEFAULT_PORT
        login = await self._login()
        return await first_success(
            [
                partial(
                    shake_hands, partial(self._connect, number, port, host), login, self.protocol
                )
                for number in await addresses_of(host, port)
            ],
            seconds=self.url.options.connect_timeout_seconds,
            discard=ServerLink.abort,
            final=_final,
        )

    async def _open_path(self, path: str) -> Link:
        async def connect(protocol: int) -> ServerLink:
            return ServerLink(*await asyncio.open_unix_connection(path), protocol)

        return await shake_hands(connect, await self._login(), self.protocol)

    async def _login(self) -> Login:
        return Login(await self.provider.credentials(), self._database, self._driver.client_name)

    async def _connect(self, number: str, port: int, host: str, protocol: int) -> ServerLink:
        """Connect to one address of a host; nothing has been said on it yet."""
        context = self._tls_context() if self.tls else None
        reader, writer = await asyncio.open_connection(
            number, port, ssl=context, server_hostname=host if self.tls else None
        )
        if isinstance(self._driver, Connection) and self._driver.socket_keepalive:
            sock = writer.get_extra_info("socket")
            options = cast("Mapping[int, int | bytes]", self._driver.socket_keepalive_options)
            # Not every platform has each of the options.
            with contextlib.suppress(OSError, TypeError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                for option, value in options.items():
                    sock.setsockopt(socket.IPPROTO_TCP, option, value)
        return ServerLink(reader, writer, protocol)

    def _driver_connection(self) -> AbstractConnection:
        """The driver's view of the options; it is never connected."""
        try:
            return self._class(**self._arguments)
        except (RedisError, TypeError, ValueError) as exc:
            problem = f"{self.url}: the driver refuses an option: {type(exc).__name__}"
        raise ConfigurationError(problem)

    def _tls_context(self) -> ssl.SSLContext:
        """One TLS context for all connections, until a certificate's file has changed.

        Making one loads the system's authorities: some 30 ms in which the event loop stands still.

        Raises:
            ConfigurationError: the files of a certificate and its key cannot be used.
        """
        files = [self.extra[option] for option in TLS_FILES if option in self.extra]
        changed = [Path(file).stat().st_mtime_ns for file in files if Path(file).exists()]
        if self._tls_state is None or self._tls_state[0] != changed:
            self._tls_state = changed, self._new_tls_context()
        return self._tls_state[1]

    def _new_tls_context(self) -> ssl.SSLContext:
        made = cast("SSLConnection", self._driver_connection()).ssl_context
        if made.password is None:
            # Without a password of ours, OpenSSL would ask for one on the terminal.
            made.password = _no_password  # type: ignore[assignment]
        try:
            return made.get()
        except ConfigurationError as exc:
            problem = str(exc)
        except (OSError, TypeError, ValueError) as exc:
            problem = f"the files of the TLS options cannot be used: {exc}"
        raise ConfigurationError(f"{self.url}: {problem}")


def _final(error: BaseException) -> bool:
    """Whether the other addresses of a name need not be tried: they want the same credentials."""
    return isinstance(error, Refused) and error.of_credentials


def _no_password() -> NoReturn:
    raise ConfigurationError(
        "the TLS key is encrypted: decrypt its file, or give the password as the driver option "
        "ssl_password of a 'hosts' entry"
    )


def _hints(url: BrokerURL, *, tls: bool, always_tls: bool) -> Mapping[str, str]:
    """Option name -> what to write in its place."""
    others = [name for name in _OTHER_SPELLINGS if name.startswith("ssl_")]
    if url.scheme == "redis+unix":
        advice = "a unix socket has no TLS"
        return {**_OTHER_SPELLINGS, **dict.fromkeys([*others, *TLS_OPTIONS], advice)}
    if not tls:
        advice = f"TLS needs the scheme {url.scheme.replace('redis', 'rediss', 1)}://"
        there = {name: f"{advice}; there, {_OTHER_SPELLINGS[name]}" for name in others}
        return {**_OTHER_SPELLINGS, **there, **dict.fromkeys(TLS_OPTIONS, advice)}
    if always_tls:
        always = "the certificate is always verified: leave the option out"
        return {**_OTHER_SPELLINGS, **dict.fromkeys(_VERIFY, always)}
    return _OTHER_SPELLINGS


def _protocol(url: BrokerURL, extra: Mapping[str, str]) -> int | None:
    """The RESP protocol that the URL or its driver options ask for."""
    value = extra.get("protocol", url.driver_options.get("protocol"))
    if value is None:
        return None
    if isinstance(value, bool) or str(value) not in ("2", "3"):
        raise ConfigurationError(f"{url}: option protocol: use 2 or 3, or leave it out")
    return int(str(value))


def database(url: BrokerURL, text: str) -> int | None:
    """The number of a database in a URL's path, None for none.

    Raises:
        ConfigurationError: it is not a number.
    """
    if not text:
        return None
    if not text.isascii() or not text.isdigit():
        path = "/service/0" if url.scheme.endswith("+sentinel") else "/0"
        raise ConfigurationError(
            f"{url}: database {text!r} is not a number: write {url.scheme}://host:6379{path}, or "
            "nothing"
        )
    return int(text)


def _number(url: BrokerURL, database: str | int | None) -> int:
    try:
        return int(database or 0)
    except ValueError:
        pass
    raise ConfigurationError(f"{url}: driver option db: use a number")


def _tls_arguments(url: BrokerURL, extra: Mapping[str, str]) -> dict[str, Any]:
    verify = extra.get("tls_verify", "full")
    if verify not in ("full", "ca", "none"):
        raise ConfigurationError(f"{url}: option tls_verify: use 'full', 'ca' or 'none'")
    arguments: dict[str, Any] = {}
    if "tls_verify" in extra:
        arguments["ssl_cert_reqs"] = "none" if verify == "none" else "required"
        arguments["ssl_check_hostname"] = verify == "full"
    names = {"ssl_ca_certs": "tls_ca_file", "ssl_certfile": "tls_cert_file"}
    names["ssl_keyfile"] = "tls_key_file"
    for argument, option in names.items():
        if option in extra:
            if not Path(extra[option]).is_file():
                raise ConfigurationError(f"{url}: option {option}: no such file")
            arguments[argument] = extra[option]
    return arguments


def _known_driver_options(url: BrokerURL, connection: type[AbstractConnection]) -> dict[str, Any]:
    """Keyword arguments of a `hosts` entry that the driver's connection takes.

    Raises:
        ConfigurationError: the driver does not know the name.
    """
    known = {
        name
        for cls in connection.__mro__
        if issubclass(cls, AbstractConnection)
        for name in inspect.signature(cls).parameters
        if name != "kwargs"
    }
    for name in url.driver_options:
        if name in _UNUSED or name not in known | _SINCE_REDIS_PY:
            raise ConfigurationError(
                f"{url}: unknown driver option {name!r}; {suggest(name, known - _UNUSED)}"
            )
    ours = _SINCE_REDIS_PY | _LOGIN
    return {name: value for name, value in url.driver_options.items() if name not in ours}
