"""URL and driver options -> redis-py's connection to one node, not yet connected."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from redis.asyncio.connection import (
    AbstractConnection,
    Connection,
    SSLConnection,
    UnixDomainSocketConnection,
)
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from ..errors import ConfigurationError
from ..url import BrokerURL, suggest

__all__ = ["Connector"]

DEFAULT_PORT = 6379
TLS_OPTIONS = {
    "tls_ca_file": "file with the certificates of the authorities to trust",
    "tls_cert_file": "file with the client certificate",
    "tls_key_file": "file with the client certificate's key",
    "tls_verify": "'full' (default), 'ca' (any host name) or 'none'",
}
_SINCE_REDIS_PY = frozenset(
    # What the published package passed on to a connection pool; all of it is ours to decide now.
    "decode_responses encoding encoding_errors health_check_interval max_connections protocol "
    "retry retry_on_error retry_on_timeout socket_timeout timeout single_connection_client".split()
)


class Connector:
    """Makes the driver's connection for a URL."""

    def __init__(self, url: BrokerURL) -> None:
        extra = url.check_extra(TLS_OPTIONS if url.scheme == "rediss" else {})
        self._arguments = {
            **_known_driver_options(url),
            "username": url.username,
            "password": url.password,
            "socket_connect_timeout": url.options.connect_timeout_seconds,
            "socket_timeout": url.options.connect_timeout_seconds,
            "retry": Retry(NoBackoff(), 0),
            "health_check_interval": 0,
            "driver_info": None,
        }
        if not url.username and not url.password:
            for name in ("username", "password"):
                self._arguments[name] = url.driver_options.get(name)
        self._class = _CLASSES[url.scheme]
        if url.scheme == "redis+unix":
            if url.addresses or not url.path:
                raise ConfigurationError(
                    f"{url}: write redis+unix:///path/to/socket, with three slashes"
                )
            self._arguments["path"] = "/" + url.path
            return
        if len(url.addresses) != 1:
            raise ConfigurationError(
                f"{url}: {url.scheme}:// takes exactly one host, not {len(url.addresses)}"
            )
        self._arguments["host"] = url.addresses[0].host
        self._arguments["port"] = url.addresses[0].port or DEFAULT_PORT
        if url.path:
            self._arguments["db"] = _database(url)
        if url.scheme == "rediss":
            self._arguments.update(_tls_arguments(url, extra))

    def __call__(self, protocol: int) -> AbstractConnection:
        return self._class(**self._arguments, protocol=protocol)


_CLASSES: dict[str, type[AbstractConnection]] = {
    "redis": Connection,
    "rediss": SSLConnection,
    "redis+unix": UnixDomainSocketConnection,
}


def _database(url: BrokerURL) -> int:
    if not url.path.isascii() or not url.path.isdigit():
        raise ConfigurationError(
            f"{url}: database {url.path!r} is not a number: write redis://host:6379/0, or nothing"
        )
    return int(url.path)


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


def _known_driver_options(url: BrokerURL) -> dict[str, Any]:
    """Keyword arguments of a `hosts` entry that the driver's connection takes.

    Raises:
        ConfigurationError: the driver does not know the name.
    """
    known = {
        name
        for cls in _CLASSES[url.scheme].__mro__
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
