"""The slot map of a cluster: several servers are asked concurrently, and the newest answer counts.

A server that was cut off may give an outdated answer. The epoch in CLUSTER INFO tells which answer
is newer. MOVED redirections are applied at once.

Addresses in the reply to CLUSTER SLOTS (https://redis.io/docs/latest/commands/cluster-slots/): a
host; NULL for "the host that was asked", with the port given; "" for a server that does not know
its own address; "?" for a server that should be named by a host name and has none. With NULL, ""
and "?", the metadata behind the address may contain the IP address.
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

# Not the state of `random`, which the application may have seeded.
_random = random.SystemRandom()

QUESTIONS: Sequence[tuple[bytes, ...]] = (
    (b"CLUSTER", b"SLOTS"),
    (b"CLUSTER", b"INFO"),
    (b"COMMAND", b"INFO", b"SSUBSCRIBE"),
)
ASKED_FIRST = 3
"""Number of reachable servers asked first; the others are asked only if none of these answers."""
FIRST_SECONDS = 0.3
"""How long the servers asked first may take."""
GRACE_SECONDS = 0.05
"""How long other servers may take after the first answer, which may be outdated."""

MOST_NAMED = 5
"""Maximum number of problems in an error."""


class SlotMap:
    """The slot map in the answer of one server.

    Attributes:
        owners: slot -> address of its primary, or None.
        primaries: address of each server that owns slots -> addresses of its replicas.
        epoch: the current epoch of the cluster in the answer, 0 for unknown.
        pubsub: the commands of sharded pub/sub if the servers have it, else the plain ones.
        pubsub_known: whether the server has answered that question.
    """

    def __init__(self) -> None:
        self.owners: list[Address | None] = [None] * SLOTS
        self.primaries: dict[Address, list[Address]] = {}
        self.epoch = 0
        self.pubsub: PubSubCommands = SHARDED
        self.pubsub_known = False

    @property
    def replicas(self) -> list[Address]:
        """All replicas."""
        return [replica for replicas in self.primaries.values() for replica in replicas]

    @property
    def covered(self) -> int:
        """The number of slots with an owner."""
        return SLOTS - self.owners.count(None)


class NoSlotMap(ValueError):
    """A server gave no slot map; `str()` is the reason."""


def read_slot_map(replies: Sequence[Any], asked: Address) -> SlotMap:
    """Parse the replies of one server to `QUESTIONS`.

    Raises:
        NoSlotMap: the server is part of no cluster, or the reply is malformed.
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
        result.pubsub_known = True
        result.pubsub = SHARDED if sharded[0] else PLAIN
    return result


class _Names:
    """The addresses of the servers in one answer.

    Args:
        asked: the address of the server that answered.
    """

    def __init__(self, slots: Sequence[Any], asked: Address) -> None:
        self._asked = asked
        # Several servers without a host and with the same port cannot all be on the asked host.
        ids: dict[int, set[bytes]] = {}
        for _, _, *servers in slots:
            for server in servers:
                if not server[0] and len(server) > 2:
                    ids.setdefault(server[1], set()).add(server[2])
        self._shared_ports = {port for port, names in ids.items() if len(names) > 1}

    def address(self, server: Sequence[Any]) -> Address | None:
        """The address of a server; None if it has no port for this kind of connection."""
        host, port = _text(server[0]), server[1]
        if not port:
            return None
        if host in ("", "?"):
            given = _metadata(server)
            at_asked_host = host == "" and port not in self._shared_ports
            host = "" if at_asked_host else given.get("ip") or given.get("hostname", "")
        return Address(host or self._asked.host, port)


def _metadata(server: Sequence[Any]) -> dict[str, str]:
    """The metadata behind the address of a server; empty before Redis 7."""
    given = pairs(server[3]) if len(server) > 3 else {}
    return {_text(name): _text(value) for name, value in given.items()}


def _text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else ""


class Topology:
    """The present slot map and its refresh.

    Args:
        ask: sends `QUESTIONS` to one server; returns the replies and the address of the server that
            answered; raises ConnectError.
        seems_reachable: whether a server is likely to answer.

    Attributes:
        slot_map: the newest answer so far, with the MOVED redirections applied.
    """

    def __init__(
        self,
        url: BrokerURL,
        seeds: Sequence[Address],
        ask: Callable[[Address], Awaitable[tuple[Sequence[Any], Address]]],
        seems_reachable: Callable[[Address], bool],
    ) -> None:
        self._url = url
        self._seeds = seeds
        self._ask = ask
        self._seems_reachable = seems_reachable
        self.slot_map: SlotMap | None = None

    def hint(self, slot: int, address: Address) -> None:
        """Apply a MOVED redirection."""
        if self.slot_map is not None and address in self.slot_map.primaries:
            self.slot_map.owners[slot] = address

    async def refresh(self) -> SlotMap:
        """Ask for the slot map again.

        Raises:
            ConnectError: no server answered.
            AuthError: no server answered, and the credentials were wrong.
        """
        known = self.slot_map
        primaries = [] if known is None else list(known.primaries)
        well = [address for address in primaries if self._seems_reachable(address)]
        _random.shuffle(well)
        answers, _ = await self._ask_all(well[:ASKED_FIRST], FIRST_SECONDS)
        newest = max(answers, key=lambda answer: answer.epoch, default=None)
        if newest is None or (known is not None and newest.epoch < known.epoch):
            others = [*self._seeds, *primaries, *([] if known is None else known.replicas)]
            seconds = self._url.options.connect_timeout_seconds
            answers, problems = await self._ask_all(dict.fromkeys(others), seconds)
            newest = max(answers, key=lambda answer: answer.epoch, default=newest)
            if newest is None:
                raise self._worst(problems)
        if known is not None and not newest.pubsub_known:
            newest.pubsub = known.pubsub  # The server may be busy; the commands have not changed.
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
            # One malformed answer must not discard the answers of the others.
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
