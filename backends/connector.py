"""URL and driver options -> redis-py's connections, not yet connected.

One connector serves every server behind a URL: they share TLS settings, credentials and options,
and differ in their address only.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from redis.asyncio.connection import (
    AbstractConnection,
    Connection,
    RedisSSLContext,
    SSLConnection,
    UnixDomainSocketConnection,
)
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from ..errors import ConfigurationError
from ..url import Address, BrokerURL, suggest
from .credentials import CredentialProvider, auth_options, load_provider
from .link import Link, open_link

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
_SINCE_REDIS_PY = frozenset(
    # What the published package passed on to a connection pool; all of it is ours to decide now.
    "decode_responses encoding encoding_errors health_check_interval max_connections protocol "
    "retry retry_on_error retry_on_timeout socket_timeout timeout single_connection_client".split()
)


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
        self.extra = url.check_extra({**tls_options, **auth_options(url), **(scheme_options or {})})
        self._class: type[AbstractConnection]
        if url.scheme == "redis+unix":
            self._class = UnixDomainSocketConnection
        else:
            self._class = SSLConnection if self.tls else Connection
        self._arguments = {
            **_known_driver_options(url, self._class),
            # The deadline is `open_link`'s. A second one, at the same moment, could drop a
            # connection that was just made, without closing it.
            "socket_connect_timeout": None,
            "socket_timeout": None,
            "retry": Retry(NoBackoff(), 0),
            "health_check_interval": 0,
            "driver_info": None,
        }
        if database is not None:
            self._arguments["db"] = database
        if self.tls:
            self._arguments.update(_tls_arguments(url, self.extra))
        self.provider = credentials or load_provider(url, self.extra)
        self._tls_state: tuple[list[int], RedisSSLContext] | None = None

    @property
    def glide(self) -> bool:
        """Whether the URL asks for valkey-glide as the publishing driver.

        Raises:
            ConfigurationError: it asks for another driver that we do not know.
        """
        driver = self.extra.get("driver", "redis")
        if driver not in ("redis", "glide"):
            raise ConfigurationError(f"{self.url}: driver={driver!r}: use 'redis' or 'glide'")
        return driver == "glide"

    def max_age_seconds(self) -> float | None:
        """The age that a connection opened last must not reach; None for any."""
        return self.provider.max_age_seconds

    async def open(self, address: Address, *, need_primary: bool = False) -> Link:
        """Open a link to one server; see `open_link`."""
        where = {"host": address.host, "port": address.port or DEFAULT_PORT}
        return await open_link(self.url, partial(self._connect, where), need_primary=need_primary)

    async def open_socket(self, path: str, *, need_primary: bool = False) -> Link:
        """Open a link over a unix socket; see `open_link`."""
        where = {"path": path}
        return await open_link(self.url, partial(self._connect, where), need_primary=need_primary)

    async def _connect(self, where: Mapping[str, Any], protocol: int) -> AbstractConnection:
        username, password = await self.provider.credentials()
        connection = self._class(
            **{**self._arguments, **where, "username": username, "password": password},
            protocol=protocol,
        )
        if isinstance(connection, SSLConnection):
            connection.ssl_context = self._shared(connection.ssl_context)
        return connection

    def _shared(self, fresh: RedisSSLContext) -> RedisSSLContext:
        """One TLS context for all connections, until a certificate's file has changed.

        redis-py 8.1 makes one for each connection and loads the system's authorities into it: some
        30 ms in which the event loop stands still.
        """
        files = [self.extra[option] for option in TLS_FILES if option in self.extra]
        changed = [Path(file).stat().st_mtime_ns for file in files if Path(file).exists()]
        if self._tls_state is None or self._tls_state[0] != changed:
            self._tls_state = changed, fresh
        return self._tls_state[1]


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


def _tls_arguments(url: BrokerURL, extra: Mapping[str, str]) -> dict[str, Any]:
    verify = extra.get("tls_verify", "full")
    if verify not in ("full", "ca", "none"):
        raise ConfigurationError(f"{url}: tls_verify={verify!r}: use 'full', 'ca' or 'none'")
    arguments: dict[str, Any] = {}
    if "tls_verify" in extra:
        arguments["ssl_cert_reqs"] = "none" if verify == "none" else "required"
        arguments["ssl_check_hostname"] = verify == "full"
    names = {"ssl_ca_certs": "tls_ca_file", "ssl_certfile": "tls_cert_file"}
    names["ssl_keyfile"] = "tls_key_file"
    for argument, option in names.items():
        if option in extra:
            if not Path(extra[option]).is_file():
                raise ConfigurationError(f"{url}: {option}={extra[option]!r}: no such file")
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
        if name not in known | _SINCE_REDIS_PY:
            raise ConfigurationError(
                f"{url}: unknown driver option {name!r}; {suggest(name, known)}"
            )
    return {
        name: value for name, value in url.driver_options.items() if name not in _SINCE_REDIS_PY
    }
