"""Servers to publish to, and messages on their way to one of them."""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Sequence
from typing import Any

from ...url import Address
from .commands import SLOTS, PubSubCommands, slot_of
from .history_scripts import KeptMessage
from .parser import ReplyError
from .pipeline import Pipeline, Recalled
from .publisher import Outcome, PublishCall

__all__ = ["Route", "RoutedMessage", "asked_at", "moved_to"]

_REDIRECTION = re.compile(r"(MOVED|ASK) (\d+) (.*):(\d+)")
ATTEMPTS = 5
"""How often a message is sent, to one server after the other, before it fails."""
_PASSING = ("MOVED", "ASK", "TRYAGAIN", "NOSCRIPT")
"""Prefixes of errors that may not come again at the same server."""


class Route:
    """A server to publish to.

    Attributes:
        address: its address, for errors and for redirections without a host.
        sent: the requests under way, in order.
    """

    __slots__ = ("address", "pipeline", "pubsub", "sent")

    def __init__(
        self, pipeline: Pipeline, pubsub: PubSubCommands, address: Address | None = None
    ) -> None:
        self.address = address
        self.pipeline = pipeline
        self.pubsub = pubsub
        self.sent: deque[tuple[Sequence[RoutedMessage], asyncio.Future[list[Any]]]] = deque()


class RoutedMessage:
    """One message of a call.

    Attributes:
        kept: the message, if it is kept in the history of its channel.
        number: its position in the order of all messages.
        refusal: the connection to the last server, and its error.
        asked: the server to which the last one redirected this message only, or None.
    """

    __slots__ = (
        "asked", "attempts", "call", "index", "kept", "name", "number", "payload", "refusal",
        "slot",
    )  # fmt: skip

    def __init__(
        self,
        call: PublishCall,
        index: int,
        name: bytes,
        payload: bytes,
        number: int,
        kept: KeptMessage | None = None,
    ) -> None:
        self.call = call
        self.index = index
        self.name = name
        self.payload = payload
        self.kept = kept
        self.slot = slot_of(name)
        self.number = number
        self.attempts = 0
        self.refusal: tuple[Pipeline, Exception] | None = None
        self.asked: Address | None = None

    def command(self, verb: bytes) -> tuple[bytes, ...]:
        """The command that publishes it with the verb of the server's kind of pub/sub."""
        return (verb, self.name, self.payload) if self.kept is None else self.kept.command(verb)

    def settle(self, outcome: Outcome) -> None:
        """Set its outcome."""
        self.call.settle(self.index, outcome)

    def refused_with(self, *prefixes: str) -> bool:
        """Whether the last error begins with one of these words."""
        return self.refusal is not None and str(self.refusal[1]).startswith(prefixes)

    def may_go_to(self, pipeline: Pipeline, now: float) -> bool:
        """Whether another attempt makes sense."""
        if self.refusal is None:
            return now < self.call.deadline
        refuser, error = self.refusal
        # Other errors would be repeated by the same server.
        passing = isinstance(error, Recalled) or self.refused_with(*_PASSING)
        same = refuser is pipeline and not passing
        return not same and self.attempts < ATTEMPTS and now < self.call.deadline


def moved_to(error: ReplyError, sender: Address | None = None) -> tuple[int, Address] | None:
    """Slot and owner in "MOVED 3999 127.0.0.1:6381"; None for other errors or an unknown host.

    Args:
        sender: the server that sent the error; an empty host stands for its host.
    """
    return _redirection("MOVED", error, sender)


def asked_at(error: ReplyError, sender: Address | None = None) -> Address | None:
    """The server in "ASK 3999 127.0.0.1:6381"; None for other errors or an unknown host."""
    found = _redirection("ASK", error, sender)
    return None if found is None else found[1]


def _redirection(
    kind: str, error: ReplyError, sender: Address | None
) -> tuple[int, Address] | None:
    found = _REDIRECTION.fullmatch(str(error))
    if found is None or found[1] != kind:
        return None
    host = found[3].strip("[]")
    if not host and sender is not None:
        host = sender.host
    slot, port = int(found[2]), int(found[4])
    if host in ("", "?") or not port or slot >= SLOTS:
        return None
    return slot, Address(host, port)
