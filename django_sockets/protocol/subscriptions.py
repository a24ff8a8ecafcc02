"""The subscriptions that one client of the protocol has made, and their ends."""

from __future__ import annotations

import asyncio
import dataclasses
import math
from collections.abc import Coroutine, Iterable, Mapping, Sequence, Set
from typing import Any, Protocol

from ..errors import BrokerError
from ..history import Recovery
from .entries import Admission, Entry, Wanted
from .frames import unsubscribed_frame
from .problems import INTERNAL, LIMIT, NOT_SUBSCRIBED, UNAVAILABLE, Problem

__all__ = ["EXPIRED", "REMOVED", "REVOKED", "Arrival", "ChannelsOwner", "Subscriptions"]

ENTRIES_IN_A_ROW = 50
"""The entries of one client that are checked before other tasks of the event loop may run."""
EXPIRED, REVOKED, REMOVED = "expired", "revoked", "removed"
"""The codes of a subscription that the server has ended."""


class Arrival(Protocol):
    """New subscriptions. Their messages wait until the client has the answer."""

    async def add(
        self, names: list[str], since: Mapping[str, str], replay: int, presence: bool
    ) -> dict[str, Recovery]:
        """Subscribe; see `Hub.add`. Raises BrokerError."""

    async def release(self) -> None:
        """Send the messages that wait, and let the later ones pass."""

    def cancel(self) -> None:
        """Discard the messages that wait."""


class ChannelsOwner(Protocol):
    """The connection, as its subscriptions know it."""

    home: asyncio.AbstractEventLoop

    @property
    def channels(self) -> Set[str]:
        """The channels of the connection, also those of the application."""

    @property
    def max_subscriptions(self) -> int:
        """The most of them."""

    def arrive(self, names: Iterable[str], watched: Set[str]) -> Arrival:
        """Begin to subscribe to channels, to those in `watched` with presence."""

    def unwatch(self, names: Iterable[str]) -> None:
        """End the presence of channels."""

    async def leave(self, names: list[str]) -> None:
        """Unsubscribe."""

    async def subscribing_failed(self, exc: Exception) -> None:
        """Log an error that is not one of the broker."""

    def control(self, payload: bytes) -> None:
        """Queue a text frame to the client."""

    def spawn(self, work: Coroutine[Any, Any, None]) -> object:
        """Run a coroutine in the background."""


@dataclasses.dataclass
class _Subscription:
    expires_at: float
    """Time of the event loop; infinity for no end."""
    shared: bool
    """The application has subscribed the connection to the channel, too."""


class Subscriptions:
    """The channels to which a client has subscribed.

    The frames of the client are handled one after the other. A subscription may expire, be revoked
    or be removed by the application at any time, also while the client subscribes to the channel.

    Args:
        owner: the connection.
    """

    __slots__ = ("_arriving", "_by_name", "_ending", "_owner", "_revoked")

    def __init__(self, owner: ChannelsOwner) -> None:
        self._owner = owner
        self._by_name: dict[str, _Subscription] = {}
        # The channels of the `subscribe` that is being handled, and those of them to be revoked.
        self._arriving: Set[str] = frozenset()
        self._revoked: set[str] = set()
        # The channels whose end was decided and has not begun.
        self._ending: set[str] = set()

    async def subscribe(
        self, entries: Sequence[Entry], admission: Admission
    ) -> tuple[list[dict[str, Any]], Arrival]:
        """Subscribe to the channels of all entries that are admitted.

        The caller sends the answer, and then calls `settle` in any case.

        Returns:
            The answer for each entry, and what to release after the answer was sent.
        """
        decisions: list[Wanted | Problem] = []
        for entry in entries:
            await self._take_turns(len(decisions))
            decisions.append(await admission.decide(entry))
        if self._ending:
            await asyncio.sleep(0)  # The tasks that end them were started, and begin before.
        wanted: dict[str, Wanted] = {}
        room = self._owner.max_subscriptions - len(self._owner.channels)
        for number, decision in enumerate(decisions):
            if isinstance(decision, Problem) or decision.channel in wanted:
                continue
            if decision.channel not in self._owner.channels:
                room -= 1
                if room < 0:
                    decisions[number] = LIMIT
                    continue
            wanted[decision.channel] = decision
        self._arriving = wanted.keys()
        watched = {name for name, one in wanted.items() if one.presence}
        arrival = self._owner.arrive(wanted, watched)
        try:
            found = await self._add(arrival, wanted)
        except BaseException:
            arrival.cancel()
            raise
        answers = [
            _refusal(entry, decision)
            if isinstance(decision, Problem)
            else self._answer(wanted[decision.channel], found[decision.channel])
            for entry, decision in zip(entries, decisions, strict=True)
        ]
        return answers, arrival

    def settle(self) -> None:
        """Tell the client of the ends that came while it subscribed. It has the answer now."""
        arrived, self._arriving = self._arriving, frozenset()
        revoked, self._revoked = self._revoked, set()
        self.revoke(revoked)
        self.removed([name for name in arrived if name not in self._owner.channels])

    async def _add(
        self, arrival: Arrival, wanted: Mapping[str, Wanted]
    ) -> dict[str, Recovery | Problem]:
        before = set(self._owner.channels)
        groups: dict[tuple[int, bool], list[str]] = {}
        for name, one in wanted.items():
            groups.setdefault((one.replay, one.presence), []).append(name)
        since = {name: one.since for name, one in wanted.items() if one.since is not None}
        results = await asyncio.gather(
            *(self._add_group(arrival, names, since, *kind) for kind, names in groups.items())
        )
        found: dict[str, Recovery | Problem] = {}
        for result in results:
            found.update(result)
        now = self._owner.home.time()
        for name, outcome in found.items():
            if isinstance(outcome, Recovery):
                seconds = wanted[name].seconds
                expires_at = math.inf if seconds is None else now + seconds
                known = self._by_name.get(name)
                if known is None:
                    self._by_name[name] = _Subscription(expires_at, name in before)
                else:
                    known.expires_at = max(known.expires_at, expires_at)
        return found

    async def _add_group(
        self,
        arrival: Arrival,
        names: list[str],
        since: Mapping[str, str],
        replay: int,
        presence: bool,
    ) -> Mapping[str, Recovery | Problem]:
        try:
            positions = {name: since[name] for name in names if name in since}
            return await arrival.add(names, positions, replay, presence)
        except BrokerError:
            return dict.fromkeys(names, UNAVAILABLE)
        except Exception as exc:
            await self._owner.subscribing_failed(exc)
            return dict.fromkeys(names, INTERNAL)

    def _answer(self, wanted: Wanted, outcome: Recovery | Problem) -> dict[str, Any]:
        answer: dict[str, Any] = {"channel": wanted.channel}
        if isinstance(outcome, Problem):
            answer["error"] = outcome.as_json()
            return answer
        if outcome.position is not None:
            answer["position"] = outcome.position
        if wanted.since is not None:
            answer["recovered"] = outcome.recovered
        if wanted.has_start:
            answer["count"] = outcome.count
        if outcome.presence is not None:
            answer["presence"] = outcome.presence
        if wanted.seconds is not None:
            answer["expires_in"] = max(1, round(wanted.seconds))
        return answer

    async def unsubscribe(self, names: Iterable[str]) -> None:
        """End subscriptions of the client. Those of the application stay."""
        gone = [name for name in dict.fromkeys(names) if name in self._by_name]
        own = [name for name in gone if not self._by_name[name].shared]
        for name in gone:
            del self._by_name[name]
        self._owner.unwatch(gone)
        if own:
            await self._owner.leave(own)

    async def renew(self, entries: Sequence[Entry], admission: Admission) -> list[dict[str, Any]]:
        """Let subscriptions last as long as their new tokens. Returns the answers."""
        answers: list[dict[str, Any]] = []
        for entry in entries:
            await self._take_turns(len(answers))
            answers.append(self._renew(entry, admission))
        return answers

    async def _take_turns(self, number: int) -> None:
        """Let other tasks run between many entries: to check a signature takes some 20 us."""
        if number % ENTRIES_IN_A_ROW == ENTRIES_IN_A_ROW - 1:
            await asyncio.sleep(0)

    def _renew(self, entry: Entry, admission: Admission) -> dict[str, Any]:
        token = admission.token_of(entry)
        if isinstance(token, Problem):
            return _refusal(entry, token)
        subscription = self._by_name.get(token.channel)
        if subscription is None:
            return _refusal(entry, NOT_SUBSCRIBED)
        if subscription.expires_at == math.inf:
            return {"channel": token.channel}
        seconds = token.seconds_left
        subscription.expires_at = max(subscription.expires_at, self._owner.home.time() + seconds)
        return {"channel": token.channel, "expires_in": max(1, round(seconds))}

    # Ends that the client has not asked for

    @property
    def next_end(self) -> float:
        """The time of the event loop at which the next subscription expires, or infinity."""
        return min(
            (one.expires_at for name, one in self._by_name.items() if name not in self._arriving),
            default=math.inf,
        )

    def expire(self, now: float) -> None:
        """End the subscriptions whose token has expired."""
        gone = [
            name
            for name, one in self._by_name.items()
            if one.expires_at <= now and name not in self._arriving
        ]
        if gone:
            self.end(gone, EXPIRED, again=True)

    def revoke(self, names: Iterable[str]) -> None:
        """End the subscriptions to some channels, because the right to them was taken back."""
        self._revoked.update(name for name in names if name in self._arriving)
        gone = [name for name in names if name in self._by_name and name not in self._arriving]
        if gone:
            self.end(gone, REVOKED, again=False)

    def end(self, names: list[str], code: str, *, again: bool) -> None:
        """End subscriptions of the client, and tell it."""
        own = [name for name in names if not self._by_name[name].shared]
        for name in names:
            del self._by_name[name]
        self._owner.unwatch(names)
        self._ending.update(own)
        self._owner.spawn(self._end(names, own, code, again))

    async def _end(self, names: list[str], own: list[str], code: str, again: bool) -> None:
        self._ending.difference_update(own)
        try:
            if own:
                await self._owner.leave(own)
        finally:
            self._tell(names, code, again)

    def removed(self, names: Iterable[str]) -> None:
        """Tell the client that the application has unsubscribed it."""
        gone = [name for name in names if self._by_name.pop(name, None) is not None]
        self._tell(gone, REMOVED, again=False)

    def _tell(self, names: Iterable[str], code: str, again: bool) -> None:
        for name in names:
            self._owner.control(unsubscribed_frame(name, code, again))


def _refusal(entry: Entry, problem: Problem) -> dict[str, Any]:
    return {"channel": entry.get("channel"), "error": problem.as_json()}
