"""Publishing to a cluster: each message to the server that owns its slot, in order.

Messages of one call are grouped by server. A message that a server certainly did not accept (the
slot has moved, or the server is gone) is sent again to the new owner of the slot. To keep order, a
slot with returned messages or with a new owner is held until the old owner has answered all
requests under way. Then its messages are sent in the order of the calls.
"""

from __future__ import annotations

import asyncio
import itertools
import re
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Any

from ...errors import BrokerClosed, ConnectError
from ...url import Address, BrokerURL
from ..client.commands import SLOTS, PubSubCommands, slot_of
from ..client.connection import ReplyError
from ..client.deadlines import ignore_result
from ..client.pipeline import NotSent, OutcomeUnknown, Pipeline, Recalled
from ..client.publisher import Outcome, PublishCall
from ..client.subscription_state import ELSEWHERE
from ..client.supervision import Supervisor

__all__ = ["Route", "Router", "moved_to"]

_MOVED = re.compile(r"MOVED (\d+) (.*):(\d+)")
ATTEMPTS = 5
"""How often a message is sent, to one server after the other, before it fails."""
BARRIER_SECONDS = 1.0
"""A former owner that does not answer in this time is disconnected. The requests on their way to it
end as unknown, and the other messages of the slot wait no longer."""


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
        self.sent: deque[tuple[Sequence[_Message], asyncio.Future[list[Any]]]] = deque()


class _Message:
    """One message of a call.

    Attributes:
        number: its position in the order of all messages.
        refusal: the connection to the last server, and its error.
    """

    __slots__ = (
        "attempts", "call", "index", "name", "number", "payload", "refusal", "slot",
    )  # fmt: skip

    def __init__(
        self, call: PublishCall, index: int, name: bytes, payload: bytes, number: int
    ) -> None:
        self.call = call
        self.index = index
        self.name = name
        self.payload = payload
        self.slot = slot_of(name)
        self.number = number
        self.attempts = 0
        self.refusal: tuple[Pipeline, Exception] | None = None

    def settle(self, outcome: Outcome) -> None:
        self.call.settle(self.index, outcome)

    def may_go_to(self, pipeline: Pipeline, now: float) -> bool:
        """Whether another attempt makes sense."""
        if self.refusal is None:
            return now < self.call.deadline
        refuser, error = self.refusal
        # MOVED, ASK and TRYAGAIN may pass; other errors would be repeated.
        passing = isinstance(error, Recalled) or str(error).startswith(("MOVED", "ASK", "TRYAGAIN"))
        same = refuser is pipeline and not passing
        return not same and self.attempts < ATTEMPTS and now < self.call.deadline


class Router:
    """The `Publisher` of a cluster.

    Args:
        route_for: returns the route of a slot, or None while its owner is unknown.
        refresh: returns after the slot map was refreshed; raises ConnectError.
        on_moved: called for each MOVED error with the slot and its new owner.
        on_waiting: called when messages wait for a connection to a server, which may be gone.
    """

    def __init__(
        self,
        url: BrokerURL,
        *,
        route_for: Callable[[int], Route | None],
        refresh: Callable[[], Awaitable[None]],
        on_moved: Callable[[int, Address], None],
        on_waiting: Callable[[], None],
    ) -> None:
        self._url = url
        self._route_for = route_for
        self._refresh = refresh
        self._on_moved = on_moved
        self._on_waiting = on_waiting
        self._numbers = itertools.count()
        self._held: dict[int, list[_Message]] = {}
        self._former: set[Route] = set()
        self._supervisor = Supervisor(url)
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    def send(self, messages: Sequence[tuple[bytes, bytes]]) -> Awaitable[Sequence[Outcome]]:
        """See `Publisher`."""
        if self._closed:
            raise BrokerClosed(self._url)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._url.options.publish_timeout_seconds
        call = PublishCall(len(messages), deadline)
        self._dispatch(
            _Message(call, index, name, payload, next(self._numbers))
            for index, (name, payload) in enumerate(messages)
        )
        return call.future

    def _dispatch(self, messages: Iterable[_Message]) -> None:
        """Send messages to the owners of their slots, or hold them."""
        batches: dict[Route, list[_Message]] = {}
        for message in messages:
            route = self._open_route(message.slot)
            if route is None:
                self._hold(message)
            else:
                batches.setdefault(route, []).append(message)
        for route, batch in batches.items():
            verb = route.pubsub.publish
            commands = [(verb, message.name, message.payload) for message in batch]
            request = route.pipeline.submit(commands)
            route.sent.append((batch, request))
            request.add_done_callback(partial(self._take_answers, route))
            if route.pipeline.waiting:
                self._on_waiting()

    def _open_route(self, slot: int) -> Route | None:
        """The route of a slot, or None if its messages have to be held."""
        route = None if slot in self._held else self._route_for(slot)
        if route is not None:
            # Returned messages go first, even if their callback has not run yet.
            self._take_answers(route)
        return None if slot in self._held else route

    def _take_answers(self, route: Route, _: object = None) -> None:
        while route.sent and route.sent[0][1].done():
            self._answered(route, *route.sent.popleft())

    def _answered(
        self, route: Route, batch: Sequence[_Message], request: asyncio.Future[list[Any]]
    ) -> None:
        if request.cancelled():
            return
        error = request.exception()
        if error is None:
            for message, reply in zip(batch, request.result(), strict=True):
                if isinstance(reply, ReplyError):
                    self._refused(route, message, reply)
                else:
                    message.settle(None)
        else:
            for message in batch:
                if isinstance(error, NotSent) and not self._closed:
                    self._come_back(route, message, error)
                elif isinstance(error, Exception):
                    message.settle(_with_address(error, route))
                else:
                    message.settle(NotSent("cancelled"))

    def _refused(self, route: Route, message: _Message, error: ReplyError) -> None:
        if not str(error).startswith(ELSEWHERE) or self._closed:
            message.settle(error)
            return
        target = moved_to(error, route.address)
        if target is not None:
            self._on_moved(*target)
        self._come_back(route, message, error)

    def _come_back(self, route: Route, message: _Message, error: Exception) -> None:
        """A message was certainly not accepted: hold it until the owner of its slot is known."""
        message.attempts += 1
        message.refusal = route.pipeline, _with_address(error, route)
        self._former.add(route)
        self._hold(message)

    def _hold(self, message: _Message) -> None:
        self._held.setdefault(message.slot, []).append(message)
        self._resume_soon()

    def hold(self, slots: Iterable[int], former: Route) -> None:
        """Hold slots with a new owner until the former one has answered."""
        if former.pipeline.busy:
            for slot in slots:
                self._held.setdefault(slot, [])
            self._former.add(former)
            self._resume_soon()

    def _resume_soon(self) -> None:
        if self._task is None or self._task.done():
            loop = asyncio.get_running_loop()
            work = self._supervisor.keep("redirecting messages", self._resume)
            self._task = loop.create_task(work, name="django_sockets redirection")

    async def _resume(self) -> None:
        """Send the held messages as soon as the owners of their slots are known."""
        while self._held:
            await self._until_answered()
            problem = None
            if any(self._needs_refresh(slot, held) for slot, held in self._held.items()):
                try:
                    await self._refresh()
                except ConnectError as exc:
                    problem = exc
                await self._until_answered()
            self._release(problem)

    def _needs_refresh(self, slot: int, held: Sequence[_Message]) -> bool:
        came_back = any(message.refusal is not None for message in held)
        return came_back or (bool(held) and self._route_for(slot) is None)

    async def _until_answered(self) -> None:
        """Wait until the former owners have answered all requests under way."""
        former, self._former = self._former, set()
        answers = {}
        for route in former:
            pipeline = route.pipeline
            pipeline.recall()
            self._take_answers(route)
            if pipeline.busy:
                answer = pipeline.submit([(b"PING",)])
                answer.add_done_callback(ignore_result)
                answers[answer] = pipeline
        if answers:
            # Half of the publish timeout, so that the held messages can still be sent.
            seconds = min(BARRIER_SECONDS, self._url.options.publish_timeout_seconds / 2)
            _, late = await asyncio.wait(answers, timeout=seconds)
            for answer in late:
                answers[answer].reset("another server has its slots now")
            if late:
                await asyncio.wait(late)

    def _release(self, problem: ConnectError | None) -> None:
        held, self._held = self._held, {}
        now = asyncio.get_running_loop().time()
        waiting = sorted(itertools.chain(*held.values()), key=lambda message: message.number)
        ready = []
        for message in waiting:
            route = None if problem is not None else self._route_for(message.slot)
            if route is not None and message.may_go_to(route.pipeline, now):
                ready.append(message)
            elif message.refusal is not None:
                message.settle(message.refusal[1])
            else:
                words = "no server of the cluster serves its slot"
                if problem is not None:
                    words = problem.problem
                elif route is not None:
                    words = "the former server of its slot did not answer in time"
                error = NotSent(words)
                error.__cause__ = problem
                message.settle(error)
        self._dispatch(ready)

    def reset(self, reason: str) -> None:
        """See `Publisher`. Nothing to do: each node resets its own connection."""

    async def aclose(self) -> None:
        """See `Publisher`."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        held, self._held = self._held, {}
        for message in itertools.chain(*held.values()):
            message.settle(NotSent("closed"))


def _with_address(error: Exception, route: Route) -> Exception:
    """The error with the address of the server, unless its cause names it."""
    known = isinstance(error, (NotSent, OutcomeUnknown)) and error.__cause__ is None
    return type(error)(f"{route.address}: {error}") if known and route.address else error


def moved_to(error: ReplyError, sender: Address | None = None) -> tuple[int, Address] | None:
    """Slot and owner in "MOVED 3999 127.0.0.1:6381"; None for other errors or an unknown host.

    Args:
        sender: the server that sent the error; an empty host stands for its host.
    """
    found = _MOVED.fullmatch(str(error))
    if found is None:
        return None
    host = found[2].strip("[]")
    if not host and sender is not None:
        host = sender.host
    slot, port = int(found[1]), int(found[3])
    if host in ("", "?") or not port or slot >= SLOTS:
        return None
    return slot, Address(host, port)
