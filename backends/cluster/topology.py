"""Which server of a cluster owns which slot: asked of several at once, the newest answer counts.

A server that was cut off, or has not heard the news yet, answers with what it knows. The epoch in
CLUSTER INFO tells which answer is newer; MOVED redirections are taken as hints at once.

What CLUSTER SLOTS says of a server's address (https://redis.io/docs/latest/commands/cluster-slots/):
a host; NULL for "the host that you have asked", with the port given; "" for a server that does not
know its own address; "?" for one that is to be named by a host name and has none. With the last
two and with NULL, the metadata behind it may have the IP address.
"""

from __future__ import annotations

import random
import re
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

from ...errors import AuthError, ConnectError
from ...url import Address, BrokerURL
from ..client.commands import PLAIN, SHARDED, SLOTS, PubSubCommands
from ..client.deadlines import first_answers
from ..client.parser import ReplyError, pairs

__all__ = ["QUESTIONS", "SlotMap", "Topology"]

QUESTIONS: Sequence[tuple[bytes, ...]] = (
    (b"CLUSTER", b"SLOTS"),
    (b"CLUSTER", b"INFO"),
    (b"COMMAND", b"INFO", b"SSUBSCRIBE"),
)
ASKED_FIRST = 3
"""So many servers that seem well are asked; all others only if none of these answers."""
FIRST_SECONDS = 0.3
"""How long those have."""
GRACE_SECONDS = 0.05
"""How long others may take after the first answer, which may not be the newest."""

MOST_NAMED = 5
"""The problems of so many servers are in an error."""


class SlotMap:
    """One answer.

    Attributes:
        owners: slot -> address of its primary, or None.
        primaries: address of each server that owns slots -> addresses of its replicas.
        epoch: the cluster's current epoch as the answering server knew it, 0 for unknown.
        pubsub: sharded pub/sub where the servers have it.
        pubsub_told: the server has answered the question for that.
    """

    def __init__(self) -> None:
        self.owners: list[Address | None] = [None] * SLOTS
        self.primaries: dict[Address, list[Address]] = {}
        self.epoch = 0
        self.pubsub: PubSubCommands = SHARDED
        self.pubsub_told = False

    @property
    def replicas(self) -> list[Address]:
        """All replicas."""
        return [replica for replicas in self.primaries.values() for replica in replicas]

    @property
    def covered(self) -> int:
        """How many slots have an owner."""
        return SLOTS - self.owners.count(None)


class NoSlotMap(ValueError):
    """A server gives no slot map; `str()` says why."""


def read_slot_map(replies: Sequence[Any], asked: Address) -> SlotMap:
    """The answers to `QUESTIONS` of one server.

    Raises:
        NoSlotMap: it knows of no cluster; the message says why.
    """
    slots, info, sharded = replies
    if isinstance(slots, ReplyError):
        raise NoSlotMap(str(slots))
    result = SlotMap()
    named = _Names(slots, asked)
    for start, end, *servers in slots:
        if not 0 <= start <= end < SLOTS:
            raise NoSlotMap(f"it names the slots {start} to {end}")
        primary, *replicas = [named.address(server) for server in servers]
        if primary is None:
            continue
        result.owners[start : end + 1] = [primary] * (end - start + 1)
        result.primaries[primary] = [replica for replica in replicas if replica is not None]
    if not result.primaries:
        raise NoSlotMap(
            "its servers have no port for connections of this kind: with TLS the scheme is "
            "rediss+cluster://, without TLS redis+cluster://"
            if slots
            else "it has no slots assigned"
        )
    if isinstance(info, bytes) and (epoch := re.search(rb"cluster_current_epoch:(\d+)", info)):
        result.epoch = int(epoch[1])
    if isinstance(sharded, list) and len(sharded) == 1:
        result.pubsub_told = True
        result.pubsub = SHARDED if sharded[0] else PLAIN
    return result


class _Names:
    """The addresses of the servers in one answer.

    Args:
        asked: the address that the answer came from.
    """

    def __init__(self, slots: Sequence[Any], asked: Address) -> None:
        self._asked = asked
        # Servers without a name that have one port in common cannot all be at the host asked.
        ids: dict[int, set[bytes]] = {}
        for _, _, *servers in slots:
            for server in servers:
                if not server[0] and len(server) > 2:
                    ids.setdefault(server[1], set()).add(server[2])
        self._shared_ports = {port for port, names in ids.items() if len(names) > 1}

    def address(self, server: Sequence[Any]) -> Address | None:
        """Where a server is; None if it has no port for us."""
        host, port = _text(server[0]), server[1]
        if not port:
            return None
        if host in ("", "?"):
            given = _metadata(server)
            at_asked_host = host == "" and port not in self._shared_ports
            host = "" if at_asked_host else given.get("ip") or given.get("hostname", "")
        return Address(host or self._asked.host, port)


def _metadata(server: Sequence[Any]) -> dict[str, str]:
    """What an answer says of a server beside its address; servers before Redis 7 say nothing."""
    given = pairs(server[3]) if len(server) > 3 else {}
    return {_text(name): _text(value) for name, value in given.items()}


def _text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else ""


class Topology:
    """The present slot map, and how to get a newer one.

    Args:
        ask: puts `QUESTIONS` to one server; returns the replies, and the address that they came
            from; raises ConnectError.
        seems_well: whether a server is likely to answer.

    Attributes:
        slot_map: the newest answer so far, with hints applied.
    """

    def __init__(
        self,
        url: BrokerURL,
        seeds: Sequence[Address],
        ask: Callable[[Address], Awaitable[tuple[Sequence[Any], Address]]],
        seems_well: Callable[[Address], bool],
    ) -> None:
        self._url = url
        self._seeds = seeds
        self._ask = ask
        self._seems_well = seems_well
        self.slot_map: SlotMap | None = None

    def hint(self, slot: int, address: Address) -> None:
        """A server says that another one owns a slot."""
        if self.slot_map is not None and address in self.slot_map.primaries:
            self.slot_map.owners[slot] = address

    async def refresh(self) -> SlotMap:
        """Ask anew.

        Raises:
            ConnectError: nobody could be asked.
            AuthError: and the credentials were wrong.
        """
        known = self.slot_map
        primaries = [] if known is None else list(known.primaries)
        well = [address for address in primaries if self._seems_well(address)]
        random.shuffle(well)
        answers, _ = await self._ask_all(well[:ASKED_FIRST], FIRST_SECONDS)
        newest = max(answers, key=lambda answer: answer.epoch, default=None)
        if newest is None or (known is not None and newest.epoch < known.epoch):
            others = [*self._seeds, *primaries, *([] if known is None else known.replicas)]
            seconds = self._url.options.connect_timeout_seconds
            answers, problems = await self._ask_all(dict.fromkeys(others), seconds)
            newest = max(answers, key=lambda answer: answer.epoch, default=newest)
            if newest is None:
                raise self._worst(problems)
        if known is not None and not newest.pubsub_told:
            newest.pubsub = known.pubsub  # The server may be busy: the commands are what they were.
        self.slot_map = newest
        return newest

    async def _ask_all(
        self, addresses: Iterable[Address], seconds: float
    ) -> tuple[list[SlotMap], list[Exception]]:
        questions = [self._ask_one(address) for address in addresses]
        return await first_answers(questions, seconds, GRACE_SECONDS)

    async def _ask_one(self, address: Address) -> SlotMap:
        replies, answered = await self._ask(address)
        try:
            return read_slot_map(replies, answered)
        except NoSlotMap:
            raise
        except Exception as exc:
            # One odd answer must not end the look at all the others.
            raise NoSlotMap(f"{address} gives no slot map ({type(exc).__name__})") from exc

    def _worst(self, problems: Sequence[Exception]) -> ConnectError:
        for problem in problems:
            if isinstance(problem, AuthError):
                return problem
        hosts = ", ".join(map(str, self._seeds))
        for problem in problems:
            if isinstance(problem, NoSlotMap):
                error = f"cannot learn the slots of the cluster: {problem}"
                if "cluster support disabled" in str(problem):
                    error = f"{hosts} is no cluster: write {self._one_node()}://"
                return ConnectError(self._url, error)
        failed = list(dict.fromkeys(p.problem for p in problems if isinstance(p, ConnectError)))
        if failed:
            more = f"; and {len(failed) - MOST_NAMED} more" if len(failed) > MOST_NAMED else ""
            return ConnectError(self._url, "; ".join(failed[:MOST_NAMED]) + more)
        seconds = self._url.options.connect_timeout_seconds
        return ConnectError(self._url, f"no answer from {hosts} within {seconds:g} s")

    def _one_node(self) -> str:
        return self._url.scheme.partition("+")[0]
