"""Opens connections to the servers of one URL, and logs in.

One connector serves all servers of a URL, because they share TLS settings, credentials and options
and differ only in their address. redis-py checks the driver options and makes the TLS context; the
streams are asyncio's.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import NoReturn, cast

from redis.asyncio.connection import AbstractConnection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.connection import Connection as TCPConnection
from redis.exceptions import RedisError

from ...deadlines import with_deadline
from ...errors import ConfigurationError, ConnectError
from ...url import Address, BrokerURL
from .addresses import addresses_of, first_success
from .connect_errors import Refused, connect_error
from .connection import Connection, ServerConnection
from .credentials import CredentialProvider, auth_options, load_provider
from .driver_options import (
    PROTOCOL_OPTION,
    TLS_FILES,
    TLS_OPTIONS,
    database_number,
    known_driver_options,
    option_hints,
    requested_protocol,
    tls_arguments,
)  # fmt: skip
from .handshake import Login, shake_hands
from .identity import PRIMARY

__all__ = ["DEFAULT_PORT", "Connector", "discard", "open_connection"]

DEFAULT_PORT = 6379


class Connector:
    """Opens connections to the servers of one URL.

    Args:
        scheme_options: the options that only this scheme has, each with one line of help.
        always_tls: use TLS with a verified certificate for every spelling of the scheme.
        database: the number of the database; None for the first.
        credentials: replaces the credentials of the URL.

    Attributes:
        extra: the URL's options of this scheme, as text.
        tls: whether connections are encrypted.
        provider: gives the credentials.
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
        self.extra = url.check_extra(known, option_hints(url, tls=self.tls, always_tls=always_tls))
        self.protocol = requested_protocol(url, self.extra)
        self._class: type[AbstractConnection]
        if url.scheme == "redis+unix":
            self._class = UnixDomainSocketConnection
        else:
            self._class = SSLConnection if self.tls else TCPConnection
        self._arguments = known_driver_options(url, self._class)
        if database is not None:
            self._arguments["db"] = database
        if self.tls:
            self._arguments.update(tls_arguments(url, self.extra))
        self.provider = credentials or load_provider(url, self.extra)
        self._driver = self._driver_connection()
        self._database = database_number(url, self._driver.db)
        self._tls_state: tuple[list[int], ssl.SSLContext] | None = None
        if self.tls:
            self._tls_context()

    @property
    def glide(self) -> bool:
        """Whether the URL asks for valkey-glide as the publishing driver.

        Raises:
            ConfigurationError: the option names an unknown driver.
        """
        driver = self.extra.get("driver", "redis")
        if driver not in ("redis", "glide"):
            raise ConfigurationError(f"{self.url}: option driver: use 'redis' or 'glide'")
        return driver == "glide"

    def max_age_seconds(self) -> float | None:
        """The age that the connection opened last must not reach, or None."""
        return self.provider.max_age_seconds

    async def open(self, address: Address, *, need_primary: bool = False) -> Connection:
        """Open a connection to one server; see `open_connection`."""
        address = Address(address.host, address.port or DEFAULT_PORT)
        connect = partial(self._open, address)
        return await open_connection(self.url, str(address), connect, need_primary=need_primary)

    async def open_socket(self, path: str, *, need_primary: bool = False) -> Connection:
        """Open a connection over a unix socket; see `open_connection`."""
        return await open_connection(
            self.url, path, partial(self._open_path, path), need_primary=need_primary
        )

    async def _open(self, address: Address) -> Connection:
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
            discard=ServerConnection.abort,
            final=_final,
        )

    async def _open_path(self, path: str) -> Connection:
        async def connect(protocol: int) -> ServerConnection:
            return ServerConnection(*await asyncio.open_unix_connection(path), protocol)

        return await shake_hands(connect, await self._login(), self.protocol)

    async def _login(self) -> Login:
        return Login(await self.provider.credentials(), self._database, self._driver.client_name)

    async def _connect(self, number: str, port: int, host: str, protocol: int) -> ServerConnection:
        """Connect to one address of a host, without a handshake."""
        context = self._tls_context() if self.tls else None
        reader, writer = await asyncio.open_connection(
            number, port, ssl=context, server_hostname=host if self.tls else None
        )
        if isinstance(self._driver, TCPConnection) and self._driver.socket_keepalive:
            sock = writer.get_extra_info("socket")
            options = cast("Mapping[int, int | bytes]", self._driver.socket_keepalive_options)
            # Some platforms lack some of the options.
            with contextlib.suppress(OSError, TypeError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                for option, value in options.items():
                    sock.setsockopt(socket.IPPROTO_TCP, option, value)
        return ServerConnection(reader, writer, protocol)

    def _driver_connection(self) -> AbstractConnection:
        """An unconnected connection of the driver, which checks the options."""
        try:
            return self._class(**self._arguments)
        except (RedisError, TypeError, ValueError) as exc:
            problem = f"{self.url}: the driver refuses an option: {type(exc).__name__}"
        raise ConfigurationError(problem)

    def _tls_context(self) -> ssl.SSLContext:
        """The TLS context of all connections, made again when a certificate file has changed.

        Making it loads the system's authorities, which blocks the event loop for some 30 ms.

        Raises:
            ConfigurationError: the files of the certificate or its key cannot be used.
        """
        files = [self.extra[option] for option in TLS_FILES if option in self.extra]
        changed = [Path(file).stat().st_mtime_ns for file in files if Path(file).exists()]
        if self._tls_state is None or self._tls_state[0] != changed:
            self._tls_state = changed, self._new_tls_context()
        return self._tls_state[1]

    def _new_tls_context(self) -> ssl.SSLContext:
        made = cast("SSLConnection", self._driver_connection()).ssl_context
        if made.password is None:
            # Without this callback, OpenSSL would ask for a password on the terminal.
            made.password = _no_password  # type: ignore[assignment]
        try:
            return made.get()
        except ConfigurationError as exc:
            problem = str(exc)
        except (OSError, TypeError, ValueError) as exc:
            problem = f"the files of the TLS options cannot be used: {exc}"
        raise ConfigurationError(f"{self.url}: {problem}")


def _final(error: BaseException) -> bool:
    """Whether other addresses of the host are useless, because they refuse the credentials too."""
    return isinstance(error, Refused) and error.of_credentials


def _no_password() -> NoReturn:
    raise ConfigurationError(
        "the TLS key is encrypted: decrypt its file, or give the password as the driver option "
        "ssl_password of a 'hosts' entry"
    )


async def open_connection(
    url: BrokerURL,
    where: str,
    connect: Callable[[], Awaitable[Connection]],
    *,
    need_primary: bool = False,
) -> Connection:
    """Connect and log in within `connect_timeout_seconds`.

    Args:
        where: the address, for errors.
        connect: opens a connection and logs in.
        need_primary: refuse a server whose role is replica.

    Raises:
        ConnectError: no answer, a late answer, or a server of a wrong role. The error has neither
            a cause nor the frames of the failure, because those may hold the password.
        AuthError: the credentials are wrong.
    """
    opening = asyncio.ensure_future(connect())
    try:
        connection = await with_deadline(url.options.connect_timeout_seconds, opening)
    except Exception as exc:
        error = connect_error(url, where, exc)
    except BaseException:
        opening.add_done_callback(discard)
        raise
    else:
        problem = _unusable(url, connection, need_primary=need_primary)
        if problem is None:
            return connection
        connection.abort()
        error = ConnectError(url, f"{problem} ({where})")
    del opening  # It keeps the frames of the failure alive.
    raise error


def _unusable(url: BrokerURL, connection: Connection, *, need_primary: bool) -> str | None:
    """Why the role of the server rules it out, or None."""
    role = connection.identity.role
    if role == "sentinel" and not url.scheme.endswith("+sentinel"):
        return (
            f"the server is a sentinel: write {url.scheme.partition('+')[0]}+sentinel://, and the "
            "name of the service after the hosts"
        )
    if need_primary and role not in (PRIMARY, ""):
        return (
            "the server is a replica, and messages published there reach only its own "
            "subscribers: use the address of the primary"
        )
    return None


def discard(opening: asyncio.Future[Connection]) -> None:
    """Close the connection that a finished attempt opened, because no caller waits for it."""
    if not opening.cancelled() and opening.exception() is None:
        opening.result().abort()
