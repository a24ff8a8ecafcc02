"""The tagged sockets of one hub, and orders of other processes to close them.

A tag is a name and a text, such as user = "7". While a `Control` has members, it is subscribed to
the control channel of its hub. There it receives orders such as "close all sockets of user 7".
`django_sockets.closing` publishes the orders.

The module does not import the socket classes. It uses the protocol `Member`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import threading
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol

from ..codec import decode_json
from ..deadlines import with_deadline
from ..delivery.message import Delivery
from ..errors import BrokerError, ConfigurationError
from ..forks import PerProcess
from ..log import LogThrottle
from ..url import BrokerOptions
from .hub import Hub
from .revocations import Revocation, Revocations, read_revocation

__all__ = [
    "Control",
    "Member",
    "check_close_code",
    "close_order",
    "control_of",
    "controls",
    "on_missed_orders",
    "tag_texts",
]

logger = logging.getLogger("django_sockets")
_throttle = LogThrottle(logger, BrokerOptions.log_interval_seconds)

RETRY_SECONDS = 1.0
"""Time between two attempts to subscribe to the control channel."""
PATIENCE_SECONDS = 1.0
"""The longest time that `add`, and so a handshake, waits for the first attempt."""

on_missed_orders: list[Callable[[], object]] = []
"""Callbacks, which are called when orders may have been missed. They have no arguments, run on the
event loop of the hub, and must not wait. A callback can look for sockets that must be closed."""


class Member(Protocol):
    """A tagged socket."""

    def on_close_order(self, code: int) -> None:
        """Close the socket. Called on the event loop of the hub; it must not wait."""

    def on_revoke_order(self, channels: Collection[str]) -> None:
        """End the subscriptions of the client to some channels, likewise."""


def tag_texts(tags: Mapping[str, Any]) -> dict[str, str]:
    """Convert tag values to texts.

    The text is `str(value.pk)` for an object with a `pk`, else `str(value)`. Tags with the value
    None are left out.
    """
    keys = {name: getattr(value, "pk", value) for name, value in tags.items()}
    return {str(name): str(key) for name, key in keys.items() if key is not None}


def check_close_code(code: object, *, standard: bool = False) -> int:
    """Return the close code if an application may use it (RFC 6455, section 7.4).

    Args:
        standard: also allow the codes that the standard reserves for itself and that may stand in a
            close frame.

    Raises:
        ConfigurationError: the code is not allowed. It is also a ValueError.
    """
    if isinstance(code, int):
        if code == 1000 or 3000 <= code <= 4999:
            return int(code)
        if standard and (1001 <= code <= 1003 or 1007 <= code <= 1014):
            return int(code)
    others = "; 1001 to 1003 and 1007 to 1014 belong to the standard" if standard else ""
    raise ConfigurationError(
        f"close code {code!r}: use 1000, or a number from 3000 to 4999{others}"
    )


def close_order(tags: Mapping[str, str], code: int) -> bytes:
    """The order that closes the members with all of these tags, as a message."""
    return json.dumps({"close": {"tags": dict(tags), "code": code}}).encode()


class Control:
    """The tagged sockets of one hub. Any thread may read it; only the hub's loop may change it.

    Attributes:
        config: the configuration of the hub.
        loop: the event loop of the hub.
        revocations: the orders to revoke that arrived.
    """

    def __init__(self, hub: Hub) -> None:
        self.revocations = Revocations()
        self.config = hub.config
        self.loop = hub.loop
        self._hub = weakref.ref(hub)  # A strong reference would keep the hub in the registry.
        self._tags_of: dict[Member, dict[str, str]] = {}
        self._index: dict[str, dict[str, dict[Member, None]]] = {}
        self._listening = False
        self._missing = False
        self._tried: asyncio.Event = asyncio.Event()
        self._left = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._tags_of)

    # Members

    async def add(self, member: Member, tags: Mapping[str, Any]) -> None:
        """Add a member, or replace its tags. Returns when orders reach it.

        If the control channel cannot be subscribed to, it logs a warning and returns after the
        first attempt, or after one second. Further attempts follow in the background. After the
        first success, `on_missed_orders` is called.
        """
        self._forget(member)
        texts = tag_texts(tags)
        if not texts:
            self._settle()
            return
        self._tags_of[member] = texts
        for name, text in texts.items():
            self._index.setdefault(name, {}).setdefault(text, {})[member] = None
        self._settle()
        try:
            await with_deadline(PATIENCE_SECONDS, self._tried.wait())
        except asyncio.TimeoutError:
            self._no_orders(f"no answer for {PATIENCE_SECONDS:g} s")
            self._tried.set()  # The next members need not wait as well.

    def discard(self, member: Member) -> None:
        """Remove a member. After the last one, the control channel is unsubscribed from."""
        self._forget(member)
        self._settle()

    def _forget(self, member: Member) -> None:
        for name, text in self._tags_of.pop(member, {}).items():
            by_text = self._index[name]
            del by_text[text][member]
            if not by_text[text]:
                del by_text[text]
            if not by_text:
                del self._index[name]

    def matching(self, tags: Mapping[str, str]) -> list[Member]:
        """The members that have all of the tags. Without tags, there are none."""
        # list(dict) is atomic, so other threads may call this.
        sets = [list(self._index.get(name, {}).get(text, ())) for name, text in tags.items()]
        if not sets:
            return []
        fewest = min(sets, key=len)
        wanted = tags.items()
        return [member for member in fewest if wanted <= self._tags_of.get(member, {}).items()]

    def values(self, tag: str) -> set[str]:
        """The texts of all members for a tag."""
        return {*list(self._index.get(tag, ()))}

    def close(self, tags: Mapping[str, str], code: int) -> int:
        """Close the members that have all of the tags, and return their number."""
        members = self.matching(tags)
        for member in members:
            try:
                member.on_close_order(code)
            except Exception:
                logger.exception("closing a socket by its tags failed")
        return len(members)

    def revoke(self, revocation: Revocation) -> None:
        """Take the right to channels back from the members that have all of the tags."""
        if not self.revocations.add(revocation):
            return  # The own order comes back from the broker.
        for member in self.matching(revocation.tags):
            try:
                member.on_revoke_order(revocation.channels)
            except Exception:
                logger.exception("ending the subscriptions of a socket failed")

    # The control channel

    def _settle(self) -> None:
        if not self._tags_of:
            self._left.set()
        if self._keeper is None and bool(self._tags_of) != self._listening:
            self._keeper = self.loop.create_task(self._keep(), name="django_sockets control")

    async def _keep(self) -> None:
        """Subscribe while there are members, else unsubscribe. At most one task runs this."""
        self._missing = False
        try:
            while bool(self._tags_of) != self._listening:
                hub = self._hub()
                if hub is None or hub.closed:
                    return
                if await self._switch(hub):
                    continue
                self._left.clear()
                del hub
                await self._pause()
        finally:
            self._keeper = None
            if self._tags_of:
                self._tried.set()  # No call of `add` may wait forever.
        if self._missing and self._listening:
            self._missed("no connection")

    async def _switch(self, hub: Hub) -> bool:
        """Subscribe to the control channel, or unsubscribe; False if the attempt failed."""
        try:
            if self._listening:
                self._listening = False
                self._tried.clear()
                await hub.remove(self)
            else:
                await hub.add_control(self)
                self._listening = True
        except BrokerError as exc:
            self._no_orders(exc)
            return False
        except Exception as exc:
            self._no_orders(repr(exc))
            return False
        finally:
            if self._tags_of:
                self._tried.set()
        return True

    def _no_orders(self, reason: object) -> None:
        self._missing = True
        text = "orders to close sockets do not arrive: %s"
        _throttle.log(
            logging.WARNING,
            f"control {self.config.url}",
            text,
            reason,
            extra={"broker": self.config.url, "reason": reason},
        )

    async def _pause(self) -> None:
        with contextlib.suppress(asyncio.TimeoutError):
            await with_deadline(RETRY_SECONDS, self._left.wait())

    def on_delivery(self, delivery: Delivery) -> None:
        """Carry out an order. Fields and orders of newer versions are ignored."""
        try:
            order = _read_order(delivery.payload)
        except Exception:  # Also RecursionError.
            hub = self._hub()
            if hub is not None:
                hub.poison(delivery.channel)
            return
        if order is None:
            return
        if isinstance(order, Revocation):
            self.revoke(order)
            return
        tags, code = order
        try:
            self.close(tags, check_close_code(code))
        except ConfigurationError as exc:
            hub = self._hub()
            if hub is not None:
                hub.counters.poison += 1
            text = "refused an order of another process to close sockets: %.200s"
            _throttle.log(
                logging.WARNING,
                f"order {self.config.url}",
                text,
                exc,
                extra={"broker": self.config.url, "reason": exc},
            )

    def on_gap(self, channels: Sequence[str], reason: str) -> None:
        """Report that orders may be missing."""
        self._missed(reason)

    def _missed(self, reason: str) -> None:
        text = "orders to close sockets may have been missed: %s"
        _throttle.log(
            logging.WARNING,
            f"missed {self.config.url}",
            text,
            reason,
            extra={"broker": self.config.url, "reason": reason},
        )
        for call in tuple(on_missed_orders):
            try:
                call()
            except Exception:
                logger.exception(
                    "on_missed_orders: %r failed", call, extra={"broker": self.config.url}
                )


def _read_order(payload: bytes) -> Revocation | tuple[dict[str, str], object] | None:
    """A revocation, or the tags and the code of a close order; None for any other order."""
    message: Any = decode_json(payload)
    if isinstance(message, dict) and "revoke" in message:
        return read_revocation(message["revoke"])
    if "close" not in message.keys():  # noqa: SIM118 - refuses lists and texts too
        return None
    order = message["close"]
    tags, code = order["tags"], order["code"]
    if not tags or not all(isinstance(text, str) for text in tags.values()):
        raise ValueError("a close order needs at least one tag, and tags must be texts")
    return tags, code


class _Registry:
    """The controls of one process. A forked child cannot reach the sockets of its parent."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.controls: weakref.WeakKeyDictionary[Hub, Control] = weakref.WeakKeyDictionary()


_registry = PerProcess(_Registry)


def control_of(hub: Hub) -> Control:
    """The control of a hub. The first call makes it."""
    registry = _registry.current
    with registry.lock:
        control = registry.controls.get(hub)
        if control is None:
            control = registry.controls[hub] = Control(hub)
        return control


def controls() -> list[Control]:
    """All controls of this process, on all event loops."""
    registry = _registry.current
    with registry.lock:
        found = list(registry.controls.values())
    return [control for control in found if not control.loop.is_closed()]
