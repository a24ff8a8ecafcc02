"""Parses, validates and redacts broker URLs and the options that all brokers share.

The grammar: `scheme://[user[:password]@]host[:port][,host[:port]...][/path][?option=value&...]`.
The backend of a scheme interprets hosts and path. No error repeats the value of an option, or text
that may be part of a password.

The core and the backends import this module.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import quote, unquote

from .errors import ConfigurationError, suggest
from .history import NO_HISTORY, HistoryRule, HistoryRules
from .redaction import frameless

__all__ = ["PRESENCE_OPTIONS", "SHARDED", "Address", "BrokerOptions", "BrokerURL", "suggest"]

SHARDED = "sharded"
"""The internal scheme of several independent hosts. No URL contains it."""

PRESENCE_OPTIONS = (
    "presence_lease_seconds",
    "presence_grace_seconds",
    "presence_members",
    "max_presence_bytes",
)
"""The options that may also be keys of a configuration dict. All hosts have the same."""

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*\Z")
_BETWEEN_URLS = re.compile(r"\s+(?=[A-Za-z][A-Za-z0-9+.-]*://)")
_INFINITE = (float("inf"), float("-inf"))
_MIB = 1024 * 1024
_MAY_HOLD_AT = frozenset(
    "user auth_file sentinel_username sentinel_password tls_ca_file tls_cert_file "
    "tls_key_file".split()
)
"""Options whose value may contain an "@" that is not percent-encoded."""
# Only errors need these patterns, so they are not compiled at the import.
_ADDRESS = r"[A-Za-z0-9+.-]+:/{1,2}[A-Za-z0-9.-]*(:[0-9]{1,5})?|[A-Za-z0-9.-]+:[0-9]{1,5}"
_HOST = r"[A-Za-z0-9.-]+(:[0-9]{1,5})?"


@dataclasses.dataclass(frozen=True)
class BrokerOptions:
    """The options of all brokers with their defaults. Each name contains the unit.

    Every field is also a URL option: `redis://host?dead_peer_seconds=2`.
    """

    prefix: str = "django_sockets"
    """Prefix of all names on the server. It separates applications that share a server."""
    connect_timeout_seconds: float = 5.0
    """Time to open one connection: TCP, TLS and the handshake of the server together."""
    publish_timeout_seconds: float = 5.0
    """Time to wait for the reply to a publish before `PublishError` is raised."""
    subscribe_timeout_seconds: float = 5.0
    """Time to wait for the acknowledgement of a subscribe before `SubscribeError` is raised."""
    dead_peer_seconds: float = 5.0
    """Time after which a silent server counts as dead and its connection is replaced."""
    probe_interval_seconds: float = 2.0
    """Time between two delivery probes of a connection that carries subscriptions."""
    log_interval_seconds: float = 10.0
    """Minimum interval between two log lines of the same kind."""
    max_payload_bytes: int = 16 * _MIB
    """Largest payload of a publish. Larger ones raise `PayloadTooLarge`."""
    events_queue_size: int = 1024
    """Events queued for one reader of `hub.subscribe` before it gets an overflow gap."""
    channels_remembered: int = 100_000
    """Channels whose last message a publishing process remembers; see docs/promises.md."""
    publishers_remembered: int = 256
    """Publishers that a subscribed channel remembers; see docs/promises.md."""
    history_messages: int | None = None
    """Messages kept of every channel; see docs/history.md. None: nothing is kept."""
    history_seconds: float | None = None
    """Time for which they are kept after the last message. Goes with `history_messages`."""
    presence_lease_seconds: float = 15.0
    """Time after which the members of a process that has died leave; see docs/presence.md."""
    presence_grace_seconds: float = 10.0
    """Time for which a member stays after its last connection has ended. 0: it leaves at once."""
    presence_members: int = 20_000
    """The most entries on one channel; each tracked connection of a member is one."""
    max_presence_bytes: int = 1024
    """Largest info of a member as JSON text. Larger ones raise `PayloadTooLarge`."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name == "prefix":
                if not re.fullmatch(r"[A-Za-z0-9_.:-]{1,64}", value):
                    raise ConfigurationError(
                        "option prefix: use 1 to 64 letters, digits, or any of _ . : -"
                    )
            elif field.name == "presence_grace_seconds":
                if not value >= 0:
                    raise ConfigurationError(f"option {field.name}: must be 0 or more")
            elif value is not None and not value > 0:
                raise ConfigurationError(f"option {field.name}: must be over 0")
        if (self.history_messages is None) != (self.history_seconds is None):
            missing = "seconds" if self.history_seconds is None else "messages"
            raise ConfigurationError(
                f"option history_{missing} is missing: use history_messages and history_seconds "
                "together, such as history_messages=100&history_seconds=300"
            )
        self.history_rules()

    def history_rules(self) -> HistoryRules:
        """The rule for all channels that `history_messages` and `history_seconds` describe."""
        if self.history_messages is None or self.history_seconds is None:
            return NO_HISTORY
        rule = HistoryRule(self.history_messages, self.history_seconds)
        return HistoryRules((("", rule),))


def _number(kind: Callable[[str], float], what: str) -> Callable[[str], float]:
    def read(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = float("nan")
        if not abs(value) < float("inf"):
            raise ValueError(what)
        return value

    return read


_READERS: dict[str, Callable[[str], Any]] = {
    "str": str,
    "float": _number(float, "a number, such as 2.5"),
    "int": _number(int, "a whole number, such as 1024"),
    "int | None": _number(int, "a whole number, such as 100"),
    "float | None": _number(float, "a number, such as 300"),
}
_OPTION_READERS = {
    field.name: _READERS[str(field.type)] for field in dataclasses.fields(BrokerOptions)
}


@dataclasses.dataclass(frozen=True)
class Address:
    """One `host[:port]` of a URL. `port` is None if the URL has none."""

    host: str
    port: int | None = None

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port is None else f"{host}:{self.port}"


@dataclasses.dataclass(frozen=True, repr=False)
class BrokerURL:
    """A parsed URL. Equal URLs mean the same broker. `str()` and `repr()` omit the password.

    Attributes:
        scheme: in lower case, with `redis` for `valkey`.
        addresses: 0..n hosts in the order of the URL.
        path: the text between hosts and options, without its first slash.
        options: the options of all brokers.
        extra: options of this scheme only, as text.
        driver_options: keyword arguments for the driver's connection, from a `hosts` entry.
        shards: the URLs of several independent hosts that form one broker.
        history: which messages the broker keeps.
    """

    scheme: str
    addresses: tuple[Address, ...] = ()
    username: str | None = None
    password: str | None = None
    path: str = ""
    options: BrokerOptions = BrokerOptions()
    extra: tuple[tuple[str, str], ...] = ()
    driver_options: Mapping[str, object] = dataclasses.field(default_factory=dict, hash=False)
    shards: tuple[BrokerURL, ...] = ()
    history: HistoryRules = NO_HISTORY

    @classmethod
    @frameless
    def together(cls, urls: Sequence[BrokerURL]) -> BrokerURL:
        """Combine several independent hosts to one broker. A single URL is returned unchanged.

        The shared options are those of the first URL, except that the smallest
        `max_payload_bytes` applies.

        Raises:
            ConfigurationError: there is no URL, a host occurs twice, or the hosts have different
                options for the history.
        """
        if len(urls) == 1:
            return urls[0]
        if not urls:
            raise ConfigurationError("a list of hosts is empty: name one or more")
        names = [url.identity for url in urls]
        for name in names:
            if names.count(name) > 1:
                raise ConfigurationError(f"{name} occurs twice in a list of hosts: keep one")
        history = urls[0].history
        if any(url.history != history for url in urls):
            raise ConfigurationError(
                "the hosts of a list have different options history_messages or history_seconds: "
                "use the same for all, or the setting 'history'"
            )
        for name in PRESENCE_OPTIONS:
            if len({getattr(url.options, name) for url in urls}) > 1:
                raise ConfigurationError(
                    f"the hosts of a list have different options {name}: use the same for all"
                )
        most = min(url.options.max_payload_bytes for url in urls)
        options = dataclasses.replace(urls[0].options, max_payload_bytes=most)
        return cls(scheme=SHARDED, options=options, shards=tuple(urls), history=history)

    def with_history(self, history: HistoryRules) -> BrokerURL:
        """The URL with other rules for the history, also at each of its shards.

        Raises:
            ConfigurationError: the URL and the rules both have a rule for all channels.
        """
        if self.history and "" in history:
            raise ConfigurationError(
                "the setting 'history' has a rule for all channels (the prefix ''), and the URL "
                "has history_messages: keep one of them"
            )
        rules = HistoryRules.of({**history.as_dict(), **self.history.as_dict()})
        shards = tuple(dataclasses.replace(shard, history=rules) for shard in self.shards)
        return dataclasses.replace(self, history=rules, shards=shards)

    def with_presence(self, values: Mapping[str, Any]) -> BrokerURL:
        """The URL with some of `PRESENCE_OPTIONS`, also at each of its shards.

        Raises:
            ConfigurationError: a value is not valid, or the URL has the option, too.
        """
        for name, value in values.items():
            whole = name in ("presence_members", "max_presence_bytes")
            numbers = int if whole else (int, float)
            if isinstance(value, bool) or not isinstance(value, numbers) or value in _INFINITE:
                number = "a whole number" if whole else "a number"
                raise ConfigurationError(f"setting {name}={value!r}: use {number}")
            if getattr(self.options, name) != getattr(BrokerOptions, name):
                raise ConfigurationError(
                    f"the setting {name!r} is also an option of the URL: keep one of them"
                )
        options = dataclasses.replace(self.options, **values)
        shards = tuple(shard.with_presence(values) for shard in self.shards)
        return dataclasses.replace(self, options=options, shards=shards)

    @classmethod
    @frameless
    def parse(cls, text: str, driver_options: Mapping[str, object] | None = None) -> BrokerURL:
        """Parse a URL and validate the parts that all schemes share.

        Several URLs, separated by white space, are independent hosts (`together`).

        Raises:
            ConfigurationError: the URL is wrong. The message names the part, and no password.
        """
        if not isinstance(text, str):
            raise ConfigurationError(
                f"a broker URL is text such as 'redis://localhost:6379', not {type(text).__name__}"
            )
        several = _BETWEEN_URLS.split(text.strip())
        if len(several) > 1:
            return cls.together([cls.parse(one, driver_options) for one in several])
        scheme, separator, rest = text.strip().partition("://")
        scheme = scheme.lower()
        if not separator or not _SCHEME.match(scheme):
            raise ConfigurationError(
                f"broker URL {_redact(text)!r} has no scheme: write 'redis://host:6379' or 'memory://'"
            )
        rest, _, query = rest.partition("?")
        authority, _, path = rest.partition("/")
        username, password, hosts = _split_authority(authority)
        if _at_behind_hosts(scheme, hosts, path, query):
            raise ConfigurationError(
                "a broker URL has an '@' after its host: in a password write %2F for '/', %3F for "
                "'?' and %40 for '@'; elsewhere write %40 for '@'"
            )
        options, extra = _split_options(query)
        return cls(
            scheme=canonical_scheme(scheme),
            addresses=_addresses(hosts),
            username=username,
            password=password,
            path=unquote(path),
            options=options,
            extra=extra,
            driver_options=dict(driver_options or {}),
            history=options.history_rules(),
        )

    def check_extra(
        self, known: Mapping[str, str], hints: Mapping[str, str] | None = None
    ) -> dict[str, str]:
        """The options of this scheme as a dict.

        Args:
            known: option name -> one line of help. Other names are refused.
            hints: refused name -> advice for the error message.

        Raises:
            ConfigurationError: an option is not in `known`.
        """
        extra = dict(self.extra)
        for name in extra:
            if name not in known:
                raise ConfigurationError(f"{self}: {self._unknown(name, known, hints or {})}")
        return extra

    def _unknown(self, name: str, known: Mapping[str, str], hints: Mapping[str, str]) -> str:
        """The error text for an unknown option, whose name may be a part of a password."""
        if name in hints:
            return f"unknown option {name!r}: {hints[name]}"
        advice = suggest(name, [*_OPTION_READERS, *known])
        secret_before = any("password" in other for other, _ in self.extra if other != name)
        likely = advice.startswith("did you mean") or not secret_before
        if likely and re.fullmatch(r"[a-z]\w*", name, re.ASCII) and dict(self.extra)[name]:
            return f"unknown option {name!r}; {advice}"
        if advice.startswith("did you mean"):
            return f"unknown option; {advice}"
        return f"unknown option (in a password write %26 for '&' and %3F for '?'); {advice}"

    @property
    def identity(self) -> str:
        """The URL without credentials and options, to compare brokers."""
        path = f"/{quote(self.path)}" if self.path else ""
        return f"{self.scheme}://{','.join(map(str, self.addresses))}{path}"

    def __str__(self) -> str:
        """The URL without its password and its options."""
        if self.shards:
            return " + ".join(map(str, self.shards))
        user = ""
        if self.username or self.password:
            user = quote(self.username or "", safe="") + (":***" if self.password else "") + "@"
        hosts = ",".join(map(str, self.addresses))
        path = f"/{quote(self.path)}" if self.path else ""
        return f"{self.scheme}://{user}{hosts}{path}"

    def __repr__(self) -> str:
        return f"BrokerURL({str(self)!r})"


def canonical_scheme(scheme: str) -> str:
    """Replace `valkey` in a scheme with `redis`."""
    return re.sub(r"^valkey(s?)(?=\+|$)", r"redis\1", scheme)


def _redact(text: str) -> str:
    """The part of an invalid URL that a message may show: an address, and nothing else."""
    _, at, rest = text.rpartition("@")
    if at:
        host = re.split(r"[/?#]", rest)[0]
        return f"***@{host}" if re.fullmatch(_HOST, host) else "***"
    return rest if not rest or re.fullmatch(_ADDRESS, rest) else "***"


def _at_behind_hosts(scheme: str, hosts: str, path: str, query: str) -> bool:
    """True if an "@" probably belongs to a password that is not percent-encoded."""
    if "@" in path and (hosts or not scheme.endswith("+unix")):
        return True
    pieces = [piece for piece in query.split("&") if "@" in piece]
    return any(unquote(piece.partition("=")[0]) not in _MAY_HOLD_AT for piece in pieces)


def _split_authority(authority: str) -> tuple[str | None, str | None, str]:
    user, separator, hosts = authority.rpartition("@")
    if not separator:
        return None, None, hosts
    name, separator, password = user.partition(":")
    return unquote(name) or None, unquote(password) if separator else None, hosts


def _addresses(hosts: str) -> tuple[Address, ...]:
    if not hosts:
        return ()
    return tuple(_address(part) for part in hosts.split(","))


def _address(part: str) -> Address:
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]]*)(?::(.*))?", part)
    if match is None or not match[1]:
        # Text after a colon is not shown: it may be a password without a host.
        shown = part.partition(":")[0]
        raise ConfigurationError(
            f"host {shown!r} in a broker URL: write host:port, [IPv6 address]:port, or host alone"
        )
    host, port = match[1].strip("[]"), match[2]
    if port is None:
        return Address(host)
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise ConfigurationError(
            f"the port of host {host!r} in a broker URL: use a number from 1 to 65535 "
            "(special characters in a password must be percent-encoded)"
        )
    return Address(host, int(port))


def _split_options(query: str) -> tuple[BrokerOptions, tuple[tuple[str, str], ...]]:
    shared: dict[str, Any] = {}
    extra: dict[str, str] = {}
    for piece in query.split("&"):
        # Not `parse_qsl`, which turns a "+" into a space.
        name, _, text = (unquote(part) for part in piece.partition("="))
        if not piece:
            continue
        if name in shared or name in extra:
            shown = f" {name!r}" if text and re.fullmatch(r"[a-z]\w*", name) else ""
            raise ConfigurationError(f"option{shown} occurs twice in a broker URL: keep one")
        read = _OPTION_READERS.get(name)
        if read is None:
            extra[name] = text
            continue
        try:
            shared[name] = read(text)
        except ValueError as exc:
            raise ConfigurationError(f"option {name}: use {exc}") from None
    return BrokerOptions(**shared), tuple(sorted(extra.items()))
