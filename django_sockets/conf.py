"""The configuration: from an argument, Django's settings, the environment, or `memory://`."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias
from urllib.parse import quote

from .errors import ConfigurationError
from .history import HistoryRules
from .optional_django import Site, django_settings, django_site
from .overrides import BrokerFactory, default_configs
from .redaction import without_frames
from .registry import open_broker
from .url import PRESENCE_OPTIONS, BrokerURL, suggest

__all__ = [
    "Config",
    "Settings",
    "Site",
    "check_hosts",
    "default_config",
    "default_config_and_origin",
    "django_site",
    "load_config",
]

DEFAULT_URL = "memory://"
ENVIRONMENT_VARIABLE = "DJANGO_SOCKETS_URL"
DJANGO_SETTING = "DJANGO_SOCKETS_CONFIG"
DRAIN_SECONDS_VARIABLE = "DJANGO_SOCKETS_DRAIN_SECONDS"
DRAIN_ON_SIGNAL_VARIABLE = "DJANGO_SOCKETS_DRAIN_ON_SIGNAL"


@dataclasses.dataclass(frozen=True)
class Settings:
    """Process-wide settings apart from the broker, with their defaults."""

    sync_call_timeout_seconds: float = 10.0
    """The longest wait of a plain call, such as `socket.broadcast(...)`, for its event loop."""
    handler_threads: int = min(32, (os.cpu_count() or 1) + 4)
    """Number of threads for `def` handlers. When all are busy, sockets wait in order."""

    hold_seconds: float = 5.0
    """The longest time that broadcasts wait for the `connect` of a socket; see docs/limits.md."""

    drain_seconds: float | None = None
    """Time to close all sockets at shutdown. None: see `drain_window_seconds`."""
    drain_on_signal: bool | None = None
    """True if SIGTERM closes the sockets first. None: see `drains_on_signal`."""

    @property
    def drain_window_seconds(self) -> float:
        """The setting, else the environment variable DJANGO_SOCKETS_DRAIN_SECONDS, else 10.

        Raises:
            ConfigurationError: the variable is not a number over 0.
        """
        if self.drain_seconds is not None:
            return self.drain_seconds
        text = os.environ.get(DRAIN_SECONDS_VARIABLE, "10")
        try:
            seconds = float(text)
        except ValueError:
            seconds = 0.0
        if not 0 < seconds < float("inf"):
            raise ConfigurationError(f"{DRAIN_SECONDS_VARIABLE}={text!r}: use a number over 0")
        return seconds

    @property
    def drains_on_signal(self) -> bool:
        """The setting, else the environment variable DJANGO_SOCKETS_DRAIN_ON_SIGNAL, else True.

        The values "0", "false" and "no" of the variable mean False.
        """
        if self.drain_on_signal is not None:
            return self.drain_on_signal
        return os.environ.get(DRAIN_ON_SIGNAL_VARIABLE, "1").lower() not in ("0", "false", "no")

    def __post_init__(self) -> None:
        if self.drain_on_signal not in (None, True, False):
            raise ConfigurationError(
                f"setting drain_on_signal={self.drain_on_signal!r}: use True or False"
            )
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name == "drain_on_signal" or (value is None and field.default is None):
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
                raise ConfigurationError(f"setting {field.name}={value!r}: use a number over 0")


_SETTING_NAMES = frozenset(field.name for field in dataclasses.fields(Settings))


@dataclasses.dataclass(frozen=True)
class Config:
    """A validated configuration. Equal configurations share one hub for each event loop.

    Attributes:
        url: the broker.
        settings: the other settings.
        open_broker: makes the broker of a hub. A test can replace it; see `overrides`.
    """

    url: BrokerURL
    settings: Settings = Settings()
    open_broker: BrokerFactory = dataclasses.field(default=open_broker, repr=False)

    def __hash__(self) -> int:
        return self._hash  # Cached: each broadcast looks up its hub, and there are many options.

    @functools.cached_property
    def _hash(self) -> int:
        return hash((self.url, self.settings, self.open_broker))


Source: TypeAlias = str | BrokerURL | Sequence[Any] | Mapping[str, Any] | Config


def load_config(source: Source | None = None) -> Config:
    """Make a configuration from a URL, a list of URLs, or a dict.

    Args:
        source: None for the default (`default_config`). A list, or URLs separated by white space,
            are independent hosts. A dict holds `url` (one URL or a list) or `hosts`, any of the
            names in `Settings`, the presence options of `BrokerOptions`, and `history`: a dict of
            channel prefix -> rule, such as
            `{"room:": {"messages": 100, "seconds": 300, "bytes": 65536}}`. `hosts` is a list of
            URLs or of dicts such as `{"address": URL, **driver_options}`. Instead of `address`, a
            dict may hold `host` and `port`, or `master_name` and `sentinels` (pairs of host and
            port) with `sentinel_kwargs`. With `cluster: True`, an `address` or `host` is the seed
            of a cluster. A `Config` is returned unchanged.

    Raises:
        ConfigurationError: the configuration is wrong. The message names the part.
    """
    try:
        if source is None:
            return default_config()
        if isinstance(source, (str, BrokerURL)):  # The most frequent case is first.
            return _of_url(source)
        if isinstance(source, Config):
            return source
        if isinstance(source, Mapping):
            return _from_dict(source)
        if isinstance(source, (list, tuple)):
            return Config(_together(source))
        error = ConfigurationError(
            f"a configuration is a URL, a list or a dict, not {type(source).__name__}: "
            'write "redis://localhost:6379"'
        )
    except ConfigurationError as exc:
        error = without_frames(exc)
    del source  # It may hold a password, and error reports show local variables.
    raise error


@functools.lru_cache(maxsize=128)
def _of_url(source: str | BrokerURL) -> Config:
    # Each connection calls this. With a shared object, the lookup of the hub is fastest.
    return Config(_host_url(source))


_configured: list[tuple[object, Config]] = []
"""The last value of Django's setting, and its configuration."""


def default_config() -> Config:
    """Django's `DJANGO_SOCKETS_CONFIG`, else the variable `DJANGO_SOCKETS_URL`, else `memory://`."""
    return default_config_and_origin()[0]


def default_config_and_origin() -> tuple[Config, str]:
    """The default configuration and its origin.

    Returns:
        The configuration, and "override", "setting", "environment" or "default".

    Raises:
        ConfigurationError: the configuration is wrong.
    """
    if default_configs:
        return load_config(default_configs[-1]), "override"
    configured = getattr(django_settings(), DJANGO_SETTING, None)
    url = None
    try:
        if configured is not None:
            if not _configured or _configured[0][0] is not configured:
                _configured[:] = [(configured, load_config(configured))]
            return _configured[0][1], "setting"
        url = os.environ.get(ENVIRONMENT_VARIABLE)
        return load_config(url or DEFAULT_URL), "environment" if url else "default"
    except ConfigurationError as exc:
        error = without_frames(exc)
    del configured, url
    raise error


def check_hosts(hosts: object) -> None:
    """Check the option `hosts`.

    Raises:
        ConfigurationError: it is not a list. The message does not show the value, which may hold
            a password.
    """
    if not _is_list(hosts):
        raise ConfigurationError(
            "'hosts' is a list such as [{'address': 'redis://localhost:6379'}]"
        )


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray))


def _from_dict(source: Mapping[str, Any]) -> Config:
    values = dict(source)
    hosts = values.pop("hosts", None)
    url = values.pop("url", None)
    history = values.pop("history", None)
    presence = {name: values.pop(name) for name in PRESENCE_OPTIONS if name in values}
    for name in values:
        if name not in _SETTING_NAMES:
            valid = ["history", "hosts", "url", *_SETTING_NAMES, *PRESENCE_OPTIONS]
            raise ConfigurationError(f"unknown setting {name!r}; {suggest(name, valid)}")
    if (hosts is None) == (url is None):
        raise ConfigurationError("a configuration dict needs either 'url' or 'hosts'")
    if hosts is not None:
        check_hosts(hosts)
    if hosts is None:
        hosts = url if isinstance(url, (list, tuple)) else [url]
    broker_url = _together(hosts)
    if history is not None:
        broker_url = broker_url.with_history(HistoryRules.parse(history))
    if presence:
        broker_url = broker_url.with_presence(presence)
    return Config(broker_url, Settings(**values))


def _together(hosts: Sequence[Any]) -> BrokerURL:
    return BrokerURL.together([_host_url(host) for host in hosts])


@functools.lru_cache(maxsize=256)
def _parse(url: str) -> BrokerURL:
    """Parse a URL. Cached, because every socket loads its configuration."""
    return BrokerURL.parse(url)


def _host_url(host: object) -> BrokerURL:
    if isinstance(host, BrokerURL):
        return host
    if isinstance(host, str):
        return _parse(host)
    if not isinstance(host, Mapping):
        raise ConfigurationError(
            f"a host is a URL or a dict with 'address', not {type(host).__name__}"
        )
    options = dict(host)
    is_cluster = options.pop("cluster", False)
    url = _address_url(options)
    if is_cluster and "+" not in url.scheme:
        url = dataclasses.replace(url, scheme=f"{url.scheme}+cluster")
    return url


def _address_url(options: dict[str, Any]) -> BrokerURL:
    """The URL of a dict in `hosts`."""
    address = options.pop("address", None)
    if address is not None:
        return BrokerURL.parse(address, options) if options else _parse(address)
    if "master_name" in options and "sentinels" in options:
        sentinels = options.pop("sentinels")
        if not _is_list(sentinels) or not all(map(_is_list, sentinels)):
            raise ConfigurationError("'sentinels' is a list such as [('10.0.0.1', 26379)]")
        hosts = ",".join(_host_port(*sentinel) for sentinel in sentinels)
        service, number = options.pop("master_name"), options.pop("db", "")
        login = options.pop("sentinel_kwargs", None) or {}
        query = "&".join(
            f"sentinel_{name}={quote(str(value), safe='')}" for name, value in login.items()
        )
        path = f"{quote(str(service), safe='')}/{number}" if number != "" else quote(str(service))
        return BrokerURL.parse(f"redis+sentinel://{hosts}/{path}?{query}", options)
    if "host" in options:
        where = _host_port(options.pop("host"), options.pop("port", 6379))
        return BrokerURL.parse(f"redis://{where}", options)
    raise ConfigurationError(
        "a host dict needs 'address' (a URL), or 'host' and 'port', or 'master_name' and "
        "'sentinels'"
    )


def _host_port(host: object, port: object = "") -> str:
    name = f"[{host}]" if ":" in str(host) else str(host)
    return f"{name}:{port}" if port else name
