"""The entries of `subscribe` and `renew`: their form, and the decision about each of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable
from typing import Any

from ..broker import check_channel
from ..decoding import decode_json
from ..errors import ChannelError, PositionError
from ..history import Position
from .problems import (
    FORBIDDEN,
    NO_PRESENCE,
    TOKEN_EXPIRED,
    TOKEN_FOREIGN,
    TOKEN_INVALID,
    InvalidFrame,
    Problem,
)
from .tokens import ChannelToken, Identity, read_token

__all__ = ["Admission", "Wanted", "entries_of", "names_of"]

MAX_POSITION_CHARACTERS = 512
MAX_REPLAY = 100_000
"""The most messages of a history that a rule can keep."""

Entry = dict[str, Any]


def entries_of(body: str, keys: tuple[str, ...], request_id: int | None) -> list[Entry]:
    """The entries in the body of a frame.

    Args:
        keys: the keys that are texts. Each entry has at least one of them.

    Raises:
        InvalidFrame: it is not a list of such objects.
    """
    entries = _decoded(body, request_id)
    if not isinstance(entries, list) or not all(_is_entry(entry, keys) for entry in entries):
        wanted = " or ".join(keys)
        raise InvalidFrame(f"It is a list of objects with the text {wanted}.", request_id)
    return entries


def _decoded(body: str, request_id: int | None) -> Any:
    try:
        return decode_json(body)
    except ValueError as exc:  # For example, a number is too large.
        raise InvalidFrame("It contains a value that cannot be read.", request_id) from exc


def _is_entry(entry: object, keys: tuple[str, ...]) -> bool:
    if not isinstance(entry, dict):
        return False
    texts = [entry[key] for key in keys if entry.get(key) is not None]
    return bool(texts) and all(isinstance(text, str) for text in texts)


def names_of(body: str, request_id: int | None) -> list[str]:
    """The names of channels in the body of `unsubscribe`.

    Raises:
        InvalidFrame: it is not a list of texts.
    """
    names = _decoded(body, request_id)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InvalidFrame("unsubscribe is a list of names of channels.", request_id)
    return names


@dataclasses.dataclass(frozen=True)
class Wanted:
    """A subscription that the client may have.

    Attributes:
        channel: its name.
        since: the position after which it begins; None for the present.
        replay: number of the last messages to send first; 0 for none.
        seconds: the time until it ends; None for no end.
        presence: the client wants the members of the channel, too.
        has_start: the client has asked for a position or a replay.
    """

    channel: str
    since: str | None = None
    replay: int = 0
    seconds: float | None = None
    presence: bool = False

    @property
    def has_start(self) -> bool:
        return self.since is not None or self.replay > 0


@dataclasses.dataclass(frozen=True)
class Admission:
    """The decision about the entries of one client.

    Attributes:
        identity: the user and session of the client.
        may_subscribe: asks the hook of the application about a channel, with or without presence.
        is_revoked: whether the right in a token was taken back.
    """

    identity: Identity
    may_subscribe: Callable[[str, bool], Awaitable[Problem | None]]
    is_revoked: Callable[[ChannelToken], bool]

    async def decide(self, entry: Entry) -> Wanted | Problem:
        """The subscription of an entry, or the reason for which it is refused."""
        token = None
        if entry.get("token") is not None:
            found = self.token_of(entry)
            if isinstance(found, Problem):
                return found
            token, channel = found, found.channel
        else:
            channel = entry["channel"]
            try:
                check_channel(channel)
            except ChannelError as exc:
                return Problem("invalid_channel", str(exc))
        start = _start_of(entry)
        if isinstance(start, Problem):
            return start
        since, replay = start
        presence = entry.get("presence") or False
        if not isinstance(presence, bool):
            return Problem("invalid_frame", "presence is true or false.")
        if token is None:
            problem = await self.may_subscribe(channel, presence)
            return problem or Wanted(channel, since, replay, presence=presence)
        if presence and not token.presence:
            return NO_PRESENCE
        if since is None and not replay and _is_position(token.since):
            since = token.since
        return Wanted(channel, since, replay, token.seconds_left, presence)

    def token_of(self, entry: Entry) -> ChannelToken | Problem:
        """The token of an entry if the client may use it now."""
        token = read_token(entry["token"])
        if token is None or entry.get("channel") not in (None, token.channel):
            return TOKEN_INVALID
        if not token.is_for(self.identity):
            return TOKEN_FOREIGN
        if token.seconds_left <= 0:
            return TOKEN_EXPIRED
        return FORBIDDEN if self.is_revoked(token) else token


def _start_of(entry: Entry) -> tuple[str | None, int] | Problem:
    since, replay = entry.get("since"), entry.get("replay")
    if since is not None and not _is_position(since):
        return Problem("invalid_position", "since is not a position of the server.")
    if replay is None:
        return since, 0
    if isinstance(replay, bool) or not isinstance(replay, int) or replay < 0:
        return Problem("invalid_position", "replay is not a number of messages.")
    if since is not None:
        return Problem("invalid_position", "since and replay cannot be combined.")
    return None, min(replay, MAX_REPLAY)


def _is_position(text: object) -> bool:
    if not isinstance(text, str) or len(text) > MAX_POSITION_CHARACTERS:
        return False
    try:
        Position.parse(text)
    except PositionError:
        return False
    return True
