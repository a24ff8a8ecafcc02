"""Publishing to a cluster: each message to the server that owns its slot, in order.

Messages of one call are grouped by server. A message that a server certainly did not accept (the
slot has moved, or the server is gone) is sent again to the new owner of the slot. To keep order, a
slot with returned messages or with a new owner is held until the old owner has answered all
requests under way. Then its messages are sent in the order of the calls.

Messages that are kept in the history of their channel take the same way. Their script publishes
them. A server that does not know the script returns them, too. Those that a later message of their
channel has overtaken fail. A single server with history has a router with one route.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Any

from ...errors import BrokerClosed, ConnectError
from ...url import Address, BrokerURL
from ..client.connection import ReplyError
from ..client.deadlines import ignore_result
from ..client.history_scripts import KEEP, KeptMessage
from ..client.pipeline import NotSent, OutcomeUnknown, PartlyRefused, Pipeline
from ..client.publisher import Outcome, PublishCall
from ..client.routes import Route, RoutedMessage, asked_at, moved_to
from ..client.scripts import is_missing, surely_refused
from ..client.subscription_state import ELSEWHERE
from ..client.supervision import Supervisor
from .redirected import publish_redirected

__all__ = ["Router"]

BARRIER_SECONDS = 1.0
"""A former owner that does not answer in this time is disconnected. The requests on their way to it
end as unknown, and the other messages of the slot wait no longer."""


class Router:
    """The `Publisher` of a cluster.

    Args:
        route_for: returns the route of a slot, or None while its owner is unknown.
        refresh: returns after the slot map was refreshed; raises ConnectError.
        on_moved: called for each MOVED error with the slot and its new owner.
        on_waiting: called when messages wait for a connection to a server, which may be gone.
        route_at: returns the route of a server, to follow an ASK error for a kept message.
        on_unkept: called for each message that was published and not kept for lack of memory.
    """

    def __init__(
        self,
        url: BrokerURL,
        *,
        route_for: Callable[[int], Route | None],
        refresh: Callable[[], Awaitable[None]],
        on_moved: Callable[[int, Address], None],
        on_waiting: Callable[[], None],
        route_at: Callable[[Address], Route] | None = None,
        on_unkept: Callable[[], None] = lambda: None,
    ) -> None:
        self._url = url
        self._route_for = route_for
        self._refresh = refresh
        self._on_moved = on_moved
        self._on_waiting = on_waiting
        self._route_at = route_at
        self._on_unkept = on_unkept
        # Server-side name -> number of the last message that passed a held one of the channel.
        self._passed: dict[bytes, int] = {}
        self._numbers = itertools.count()
        self._held: dict[int, list[RoutedMessage]] = {}
        self._former: set[Route] = set()
        self._supervisor = Supervisor(url)
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    def send(self, messages: Sequence[tuple[bytes, bytes]]) -> Awaitable[Sequence[Outcome]]:
        """See `Publisher`."""
        call = self._new_call(len(messages))
        self._dispatch(
            RoutedMessage(call, index, name, payload, next(self._numbers))
            for index, (name, payload) in enumerate(messages)
        )
        return call.future

    def send_kept(self, messages: Sequence[KeptMessage]) -> Awaitable[Sequence[Outcome]]:
        """Keep and publish 1..n messages, as `send` publishes others."""
        call = self._new_call(len(messages))
        self._dispatch(
            RoutedMessage(call, index, kept.name, kept.payload, next(self._numbers), kept)
            for index, kept in enumerate(messages)
        )
        return call.future

    def _new_call(self, count: int) -> PublishCall:
        if self._closed:
            raise BrokerClosed(self._url)
        now = asyncio.get_running_loop().time()
        return PublishCall(count, now + self._url.options.publish_timeout_seconds)

    def _dispatch(self, messages: Iterable[RoutedMessage]) -> None:
        """Send messages to the owners of their slots, or hold them."""
        batches: dict[Route, list[RoutedMessage]] = {}
        for message in messages:
            route = self._open_route(message.slot)
            if route is None:
                self._hold(message)
            else:
                batches.setdefault(route, []).append(message)
        for route, batch in batches.items():
            verb = route.pubsub.publish
            commands = [message.command(verb) for message in batch]
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
        self, route: Route, batch: Sequence[RoutedMessage], request: asyncio.Future[list[Any]]
    ) -> None:
        if request.cancelled():
            return
        error = request.exception()
        if error is None:
            for message, reply in zip(batch, request.result(), strict=True):
                if isinstance(reply, ReplyError):
                    self._refused(route, message, reply)
                else:
                    self._accepted(message, reply)
        else:
            for message in batch:
                if isinstance(error, NotSent) and not self._closed:
                    self._come_back(route, message, error)
                elif isinstance(error, Exception):
                    self._settle(message, _with_address(error, route))
                else:
                    message.settle(NotSent("cancelled"))

    def _accepted(self, message: RoutedMessage, reply: Any) -> None:
        outcome: Outcome = None
        if message.kept is not None:
            try:
                if message.kept.published(reply) is None:
                    self._on_unkept()
            except ValueError as exc:
                outcome = OutcomeUnknown(str(exc))
        self._settle(message, outcome)

    def _settle(self, message: RoutedMessage, outcome: Outcome) -> None:
        """Set the outcome of a message that the server accepted, at least perhaps."""
        if message.slot in self._held:
            self._passed[message.name] = message.number
        message.settle(outcome)

    def _refused(self, route: Route, message: RoutedMessage, error: ReplyError) -> None:
        if message.kept is not None and not self._closed:
            if is_missing(error):
                self._come_back(route, message, error)
                return
            if not surely_refused(error):
                self._settle(message, PartlyRefused(error))
                return
            if str(error).startswith("READONLY"):
                route.pipeline.demoted()
            if self._route_at is not None:
                message.asked = asked_at(error, route.address)
        if not str(error).startswith(ELSEWHERE) or self._closed:
            message.settle(error)
            return
        target = moved_to(error, route.address)
        if target is not None:
            self._on_moved(*target)
        self._come_back(route, message, error)

    def _come_back(self, route: Route, message: RoutedMessage, error: Exception) -> None:
        """A message was certainly not accepted: hold it until the owner of its slot is known."""
        message.attempts += 1
        message.refusal = route.pipeline, _with_address(error, route)
        self._former.add(route)
        self._hold(message)

    def _hold(self, message: RoutedMessage) -> None:
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
            await self._follow()
            problem = None
            if any(self._needs_refresh(slot, held) for slot, held in self._held.items()):
                try:
                    await self._refresh()
                except ConnectError as exc:
                    problem = exc
                await self._until_answered()
            self._release(problem)

    def _needs_refresh(self, slot: int, held: Sequence[RoutedMessage]) -> bool:
        came_back = any(
            message.refusal is not None and not message.refused_with("NOSCRIPT") for message in held
        )
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

    async def _follow(self) -> None:
        """Send kept messages on to the servers that ASK errors named, in the order of each slot."""
        if self._route_at is None:
            return
        groups: dict[tuple[Route, Route], list[RoutedMessage]] = {}
        for slot, held in self._held.items():
            source = self._route_for(slot)
            held.sort(key=lambda message: message.number)
            for message in list(held):
                if message.asked is None or source is None:
                    break
                group = groups.setdefault((source, self._route_at(message.asked)), [])
                group.append(message)
                held.remove(message)
        for (source, target), group in groups.items():
            refused = await publish_redirected(source, target, group, self._on_unkept)
            for message, error in refused:
                self._come_back(target, message, error)

    def _release(self, problem: ConnectError | None) -> None:
        held, self._held = self._held, {}
        passed, self._passed = self._passed, {}
        now = asyncio.get_running_loop().time()
        unloaded: dict[Pipeline, None] = {}
        waiting = sorted(itertools.chain(*held.values()), key=lambda message: message.number)
        ready = []
        for message in waiting:
            route = None if problem is not None else self._route_for(message.slot)
            if passed.get(message.name, -1) > message.number:
                message.settle(NotSent("a later message of its channel was published before it"))
            elif route is not None and message.may_go_to(route.pipeline, now):
                ready.append(message)
                if message.refused_with("NOSCRIPT"):
                    unloaded[route.pipeline] = None
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
        for pipeline in unloaded:
            pipeline.submit([KEEP.load]).add_done_callback(ignore_result)
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
