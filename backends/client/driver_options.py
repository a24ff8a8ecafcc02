"""The options of a connection, from a URL or a `hosts` entry, checked against those of redis-py.

`Connector` applies them. This module checks names and values and suggests the right spelling.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from redis.asyncio.connection import AbstractConnection

from ...errors import ConfigurationError
from ...url import BrokerURL, suggest

__all__ = [
    "DRIVER_OPTIONS", "PROTOCOL_OPTION", "TLS_FILES", "TLS_OPTIONS", "database", "database_number",
    "known_driver_options", "option_hints", "requested_protocol", "tls_arguments",
]  # fmt: skip

TLS_OPTIONS = {
    "tls_ca_file": "file with the certificates of the authorities to trust",
    "tls_cert_file": "file with the client certificate",
    "tls_key_file": "file with the client certificate's key",
    "tls_verify": "'full' (default), 'ca' (any host name) or 'none'",
}
TLS_FILES = ("tls_ca_file", "tls_cert_file", "tls_key_file")
DRIVER_OPTIONS = {"driver": "'redis' (default), or 'glide' to publish through valkey-glide"}
PROTOCOL_OPTION = {
    "protocol": "the RESP version, 2 or 3; by default 3 if the server has it, else 2"
}
_SINCE_REDIS_PY = frozenset(
    # Earlier versions passed these to a connection pool. They are accepted, and all of them but
    # `protocol` are ignored.
    "decode_responses encoding encoding_errors health_check_interval max_connections protocol "
    "retry retry_on_error retry_on_timeout socket_connect_timeout socket_timeout timeout "
    "single_connection_client".split()
)
_LOGIN = frozenset(["credential_provider", "password", "username"])
"""Driver options that `credentials` reads; they are not passed to the driver."""
_UNUSED = frozenset(["redis_connect_func"])
"""Options for the driver's own login, which `handshake` replaces."""
_VERIFY = ("ssl_cert_reqs", "ssl_check_hostname", "tls_verify")
_TLS_ADVICE = "write tls_verify=none (no check), tls_verify=ca (any host name) or nothing (full)"
_OTHER_SPELLINGS = {
    # Option names of redis-py and Celery -> what to write here instead.
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


def option_hints(url: BrokerURL, *, tls: bool, always_tls: bool) -> Mapping[str, str]:
    """Unsuitable option name -> what to write instead."""
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


def requested_protocol(url: BrokerURL, extra: Mapping[str, str]) -> int | None:
    """The RESP version that the URL or its driver options set, or None."""
    value = extra.get("protocol", url.driver_options.get("protocol"))
    if value is None:
        return None
    if isinstance(value, bool) or str(value) not in ("2", "3"):
        raise ConfigurationError(f"{url}: option protocol: use 2 or 3, or leave it out")
    return int(str(value))


def database(url: BrokerURL, text: str) -> int | None:
    """The number of a database in the path of a URL, or None.

    Raises:
        ConfigurationError: the text is not a number.
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


def database_number(url: BrokerURL, database: str | int | None) -> int:
    try:
        return int(database or 0)
    except ValueError:
        pass
    raise ConfigurationError(f"{url}: driver option db: use a number")


def tls_arguments(url: BrokerURL, extra: Mapping[str, str]) -> dict[str, Any]:
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


def known_driver_options(url: BrokerURL, connection: type[AbstractConnection]) -> dict[str, Any]:
    """The driver options of a `hosts` entry, as keyword arguments of the driver's connection.

    Raises:
        ConfigurationError: the driver has no such option.
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
