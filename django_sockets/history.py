"""The history of a channel: rules, positions, and the field that marks kept messages.

A broker with `broker.SupportsHistory` keeps the last messages of each channel for which the
configuration has a rule. The history is a cache: it ends when it is not used for some time, when
the server needs its memory, and when the server loses its data.

Each kept message has an offset, 1 for the first message of an epoch. An epoch begins when a
broker finds no history of a channel. Each kept message also names the message before it by its
tag, because a server that lost messages at a failover uses the same offsets again.

`url`, `broker`, the backends and the hub import this module.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import enum
import math
import re
from collections.abc import Mapping
from typing import Any, TypeAlias

import msgspec

from .errors import ConfigurationError, PositionError, suggest

__all__ = [
    "FIELD_BYTES",
    "NO_HISTORY",
    "NO_TAG",
    "READ_BYTES",
    "HistoryReply",
    "HistoryRule",
    "HistoryRules",
    "HistoryStatus",
    "Position",
    "Recovery",
    "Start",
    "position_field",
    "position_of",
    "tag_of",
    "with_field",
]

MAX_MESSAGES = 100_000
MAX_SECONDS = 366 * 24 * 3600
MAX_MESSAGE_BYTES = 512 * 1024 * 1024
"""The bounds of a rule. A Redis or Valkey server stores no larger value by default."""
READ_BYTES = 256 * 1024
"""Maximum size of the messages in one reply, except that one message may be larger. The server
closes connections whose unread replies are too large (`client-output-buffer-limit pubsub`)."""

_KEYS = ("messages", "seconds", "bytes")


class HistoryRule(msgspec.Struct, frozen=True):
    """How much of a channel is kept.

    Attributes:
        messages: 1 to 100,000; older messages are removed.
        seconds: the history is removed when nothing was published or read for so long. Up to 366
            days, with milliseconds.
        message_bytes: payloads above this size are published and not kept. A reader whose missed
            messages contain one gets a gap. Default: 65,536.

    Raises:
        ConfigurationError: a value is out of its bounds.
    """

    messages: int
    seconds: float
    message_bytes: int = 65_536

    def __post_init__(self) -> None:
        _check_whole("messages", self.messages, MAX_MESSAGES)
        _check_whole("bytes", self.message_bytes, MAX_MESSAGE_BYTES)
        seconds: object = self.seconds
        if (
            isinstance(seconds, bool)
            or not isinstance(seconds, (int, float))
            or not math.isfinite(seconds)
            or not 0.001 <= seconds <= MAX_SECONDS
        ):
            raise ConfigurationError(
                f"history: 'seconds' is {seconds!r}: use a number from 0.001 to {MAX_SECONDS}"
            )

    @property
    def milliseconds(self) -> int:
        """`seconds` in milliseconds."""
        return round(self.seconds * 1000)


def _check_whole(name: str, value: object, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise ConfigurationError(
            f"history: {name!r} is {value!r}: use a whole number from 1 to {most}"
        )


class HistoryRules(msgspec.Struct, frozen=True):
    """Channel prefix -> rule. It is false without rules. The rules must be equal in all processes.

    Attributes:
        rules: pairs of prefix and rule, the longest prefix first.
    """

    rules: tuple[tuple[str, HistoryRule], ...] = ()

    @classmethod
    def of(cls, rules: Mapping[str, HistoryRule]) -> HistoryRules:
        """Order rules by the length of their prefixes."""
        return cls(tuple(sorted(rules.items(), key=lambda item: (-len(item[0]), item[0]))))

    @classmethod
    def parse(cls, value: object) -> HistoryRules:
        """Read the setting `history`.

        Args:
            value: a dict such as `{"room:": {"messages": 100, "seconds": 300, "bytes": 65536}}`.
                `bytes` may be left out. The prefix "" stands for all channels.

        Raises:
            ConfigurationError: a part is wrong. The message names it.
        """
        if not isinstance(value, Mapping):
            raise ConfigurationError(
                f"'history' is a dict of channel prefix -> rule, not {type(value).__name__}: write "
                "{'room:': {'messages': 100, 'seconds': 300}}"
            )
        return cls.of({_prefix(prefix): _rule(prefix, rule) for prefix, rule in value.items()})

    def as_dict(self) -> dict[str, HistoryRule]:
        """The rules as a dict."""
        return dict(self.rules)

    def rule_for(self, channel: str) -> HistoryRule | None:
        """The rule with the longest prefix of a channel, or None.

        Names that begin with a control character are those of the library itself. They have no
        rule.
        """
        if channel < " ":
            return None
        for prefix, rule in self.rules:
            if channel.startswith(prefix):
                return rule
        return None

    def __bool__(self) -> bool:
        return bool(self.rules)

    def __contains__(self, prefix: str) -> bool:
        return any(prefix == known for known, _ in self.rules)


NO_HISTORY = HistoryRules()
"""Without rules: nothing is kept."""


def _prefix(prefix: object) -> str:
    problem = None
    if not isinstance(prefix, str):
        problem = f"a prefix is str, not {type(prefix).__name__}"
    elif "*" in prefix:
        problem = f"leave the '*' out, and write {prefix.partition('*')[0]!r}"
    elif re.search(r"[\x00-\x1f\x7f-\x9f]", prefix):
        problem = "remove the control characters"
    elif len(prefix.encode(errors="replace")) > 255:
        problem = "no channel has more than 255 bytes"
    if problem is not None:
        raise ConfigurationError(f"history: prefix {str(prefix)[:80]!r}: {problem}")
    return str(prefix)


def _rule(prefix: object, value: object) -> HistoryRule:
    where = f"history: the rule of prefix {prefix!r}"
    if isinstance(value, HistoryRule):
        return value
    if not isinstance(value, Mapping):
        raise ConfigurationError(
            f"{where} is {type(value).__name__}: write {{'messages': 100, 'seconds': 300}}"
        )
    rest: dict[Any, Any] = dict(value)
    for name in rest:
        if name not in _KEYS:
            raise ConfigurationError(f"{where} has unknown {name!r}; {suggest(str(name), _KEYS)}")
    for name, example in (("messages", 100), ("seconds", 300)):
        if name not in rest:
            raise ConfigurationError(f"{where} has no {name!r}: add it, such as {example}")
    if "bytes" in rest:
        rest["message_bytes"] = rest.pop("bytes")
    try:
        return HistoryRule(**rest)
    except ConfigurationError as exc:
        problem = str(exc).removeprefix("history: ")
    raise ConfigurationError(f"{where}: {problem}")


# Positions

_EPOCH_BYTES, _ID_BYTES, _OFFSET_BYTES, _TAG_BYTES = 8, 8, 8, 16
NO_TAG = bytes(_TAG_BYTES)
"""The tag before the first message of an epoch."""


@dataclasses.dataclass(frozen=True)
class Position:
    """A place between two messages in the history of a channel. `str()` gives its opaque text.

    Attributes:
        epoch: 8 bytes.
        offset: of the last message before the place; 0 before the first message of the epoch.
        tag: 16 bytes of that message (`tag_of`); `NO_TAG` for the offset 0.
        history_id: 8 bytes that name the data set of the server: two servers that were once copies
            of each other, and then took different messages, have different ones. Empty if the
            server hides it.
    """

    epoch: bytes
    offset: int
    tag: bytes
    history_id: bytes = b""

    def __str__(self) -> str:
        data = self.epoch + self.history_id + self.offset.to_bytes(_OFFSET_BYTES, "big") + self.tag
        return base64.urlsafe_b64encode(data).rstrip(b"=").decode()

    @classmethod
    def parse(cls, text: object) -> Position:
        """The position of a text.

        Raises:
            PositionError: it is not the text of a position.
        """
        if not isinstance(text, str) or not re.fullmatch(
            r"[A-Za-z0-9_-]{43}|[A-Za-z0-9_-]{54}", text
        ):
            raise PositionError
        try:
            data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        except (ValueError, binascii.Error):
            raise PositionError from None
        rest = len(data) - _OFFSET_BYTES - _TAG_BYTES
        offset = int.from_bytes(data[rest : rest + _OFFSET_BYTES], "big")
        found = cls(data[:_EPOCH_BYTES], offset, data[-_TAG_BYTES:], data[_EPOCH_BYTES:rest])
        # Base64 has several texts for the same bytes, and scripts count exactly only up to 2**53.
        if str(found) != text or offset >= 2**53:
            raise PositionError
        return found


@dataclasses.dataclass(frozen=True)
class Recovery:
    """The result of a subscription to one channel.

    Attributes:
        recovered: the subscriber gets every message behind the given position. False if no position
            was given, or if the history does not have all of them any more. In the latter case, a
            gap with the reason "history" comes before the first message.
        position: the place in the history behind the replayed messages: the messages that follow
            are live. It is opaque text, to be given as `since` later. None if the channel has no
            history rule, or if the server could not be asked.
        count: number of replayed messages.
        presence: the members of the channel, as key -> [info of each connection]. All changes that
            follow are events. None without `presence=True`.
    """

    recovered: bool = False
    position: str | None = None
    count: int = 0
    presence: Mapping[str, list[Any]] | None = dataclasses.field(default=None, hash=False)


Start: TypeAlias = Position | int | None
"""Where to begin to read: behind a position, with the last n messages (1..n), or behind the newest
message (None), which gives its position only."""


class HistoryStatus(enum.Enum):
    """How the messages of a reply relate to the place where reading began."""

    WHOLE = 1
    """The reply ends with the newest message, and has every kept message since the start."""
    CUT = 2
    """As `WHOLE`, but the reply is full. Read on from its position."""
    BROKEN = 0
    """Messages since the start are not kept any more, or the start is of another epoch. The
    position of the reply is the newest one."""
    UNAVAILABLE = -1
    """The server did not answer in time, or refused. The position is None."""


class HistoryReply(msgspec.Struct, frozen=True):
    """Messages from the history of one channel.

    `WHOLE` and `CUT` speak of the server that answered. Two further facts tell whether all messages
    are the continuation of the start: `position.history_id` is that of the start, and each message
    names the tag of the one before it.

    Attributes:
        status: see `HistoryStatus`.
        position: the place behind the messages; behind the newest message if `status` is `BROKEN`.
            None if the server could not provide one, because it is out of memory.
        messages: in the order of their offsets, as they were delivered to subscribers. Each has
            the position field.
        previous_history_id: the history id that the server had before it was promoted, or empty.
        problem: why the history is unavailable.
    """

    status: HistoryStatus
    position: Position | None = None
    messages: tuple[bytes, ...] = ()
    previous_history_id: bytes = b""
    problem: str = ""

    @classmethod
    def unavailable(cls, problem: str) -> HistoryReply:
        """The reply if there is none of the server."""
        return cls(HistoryStatus.UNAVAILABLE, problem=problem)


# The field of a kept message; docs/wire-format.md describes it.

_FIELD_START = b"\x02\x00\x28"
FIELD_BYTES = 43
"""Size of the position field. It is the last extension field of the envelope."""
_LENGTH = slice(6, 8)
_HEADER_BYTES = 32
_TAG = slice(8, 24)


def tag_of(message: bytes) -> bytes:
    """The tag of a message: the publisher and the counter in its header."""
    return message[_TAG]


def with_field(header: bytes) -> bytes:
    """A header with room for the position field, which follows behind it."""
    length = int.from_bytes(header[_LENGTH], "big") + FIELD_BYTES
    return header[:6] + length.to_bytes(2, "big") + header[8:]


def position_field(epoch: bytes, offset: int, tag_before: bytes) -> bytes:
    """The position field of a message.

    Args:
        offset: of the message.
        tag_before: the tag of the message before it; `NO_TAG` for the first one.
    """
    return b"%b%b%016d%b" % (_FIELD_START, epoch, offset, tag_before)


def position_of(message: bytes, history_id: bytes = b"") -> Position | None:
    """The position behind a kept message; None if it has no position field."""
    end = _HEADER_BYTES + int.from_bytes(message[_LENGTH], "big")
    field = message[end - FIELD_BYTES : end]
    digits = field[11:27]
    if not field.startswith(_FIELD_START) or len(field) != FIELD_BYTES or not digits.isdigit():
        return None
    return Position(field[3:11], int(digits), tag_of(message), history_id)
