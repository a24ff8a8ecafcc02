"""Answers surveys for one hub while the hub has connections.

A process with several hubs of one broker answers once, for all of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any

from ...deadlines import with_deadline
from ...delivery.message import Delivery
from ...errors import BrokerError
from ...forks import PerProcess
from ..process import hubs_of_broker

if TYPE_CHECKING:
    from ..hub import Hub

__all__ = ["SurveyListener"]

logger = logging.getLogger("django_sockets")

BEGIN_SECONDS = 3.0
"""Time from the first connection of a hub to its subscription to the control channel. A test with a
few sockets, and a storm of handshakes after a start, have no additional subscription."""
RETRY_SECONDS = 5.0
"""Time between two attempts to subscribe."""
REMEMBERED_SECONDS = 30.0
"""A hub that ends says so to the processes that have asked within this time."""
MOST_ASKERS = 100
FAREWELL_SECONDS = 0.5
"""The longest time that the end of a hub waits for this message."""

_answered: PerProcess[deque[tuple[object, str]]] = PerProcess(lambda: deque(maxlen=100))
"""The broker and the id of the questions that this process has answered last."""


class SurveyListener:
    """Answers the surveys on the broker of one hub. Its methods run on the hub's event loop.

    Args:
        hub: the hub.
        publish: publishes on one of the library's own channels, also while the hub closes.
    """

    def __init__(self, hub: Hub, publish: Callable[[str, bytes], Awaitable[None]]) -> None:
        self._hub = hub
        self._publish = publish
        self._stays = False
        self._listening = False
        self._timer: asyncio.TimerHandle | None = None
        self._switching: asyncio.Task[None] | None = None
        self._answering: set[asyncio.Task[None]] = set()
        self._asked: dict[str, float] = {}

    def stay(self) -> None:
        """Also answer without connections, from now on."""
        self._stays = True
        self._settle()

    def connections_changed(self) -> None:
        """The first connection has come, or the last one has gone."""
        if self._listening:
            self._settle()
        elif self._timer is None and self._wanted:
            self._timer = self._hub.loop.call_later(BEGIN_SECONDS, self._begin)

    def _begin(self) -> None:
        self._timer = None
        self._settle()

    @property
    def listening(self) -> bool:
        """The hub answers surveys at present. For any thread."""
        return self._listening

    @property
    def _wanted(self) -> bool:
        return self._stays or len(self._hub.connections) > 0

    def _settle(self) -> None:
        if self._switching is None and self._wanted != self._listening and not self._hub.closed:
            self._switching = self._spawn(self._switch(), "listen for surveys")

    def _spawn(self, work: Coroutine[Any, Any, None], what: str) -> asyncio.Task[None]:
        return self._hub.loop.create_task(work, name=f"django_sockets {what}")

    async def _switch(self) -> None:
        """Subscribe to the control channel, or unsubscribe. At most one task runs this."""
        try:
            while self._wanted != self._listening:
                try:
                    await self._switch_once()
                except BrokerError as exc:
                    text = "surveys do not arrive: %s"
                    logger.debug(text, exc, extra={"broker": self._hub.config.url, "reason": exc})
                    await asyncio.sleep(RETRY_SECONDS)
        finally:
            self._switching = None

    async def _switch_once(self) -> None:
        if self._wanted:
            await self._hub.add_control(self)
            self._listening = True
        else:
            self._listening = False
            await self._hub.remove(self)
            await self._say_farewell("idle")

    # Questions

    def on_delivery(self, delivery: Delivery) -> None:
        """Answer a question. Other orders are for `hub.control`."""
        from .messages import read_question  # Processes that nobody asks do not load it.

        question = read_question(delivery.payload)
        if question is None or self._hub.closed:
            return
        self._remember(question.answers)
        key = (self._hub.config.url, question.id)
        answered = _answered.current
        if key in answered or len(self._answering) >= MOST_ASKERS:
            return
        answered.append(key)
        task = self._spawn(self._answer(question.answers, question.id), "answer a survey")
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)

    def on_gap(self, channels: Sequence[str], reason: str) -> None:
        """A missed question is asked again."""

    def _remember(self, answers: str) -> None:
        self._asked.pop(answers, None)
        self._asked[answers] = self._hub.loop.time()
        while len(self._asked) > MOST_ASKERS:
            del self._asked[next(iter(self._asked))]

    async def _answer(self, answers: str, question: str, state: str | None = None) -> None:
        from .messages import pack_answer
        from .report import report_of_process

        url = self._hub.config.url
        try:
            await self._publish(answers, pack_answer(question, report_of_process(url, state)))
        except BrokerError as exc:
            text = "an answer to a survey was not published: %s"
            logger.debug(text, exc, extra={"broker": url, "reason": exc})

    async def _say_farewell(self, state: str) -> None:
        """Tell the processes that ask now that this one will not answer any more.

        Another hub of the process may still answer for all of them.
        """
        if any(hub.surveys.listening for hub in hubs_of_broker(self._hub.config.url)):
            return
        oldest = self._hub.loop.time() - REMEMBERED_SECONDS
        askers = [answers for answers, at in self._asked.items() if at >= oldest]
        self._asked.clear()
        for answers in askers:
            await self._answer(answers, "", state)

    async def aclose(self) -> None:
        """End all tasks, and tell the processes that ask now. Called once, by the hub."""
        if self._timer is not None:
            self._timer.cancel()
        if self._switching is not None:
            self._switching.cancel()
            await asyncio.wait([self._switching])
        if self._answering:
            await asyncio.wait(self._answering, timeout=FAREWELL_SECONDS)
        for task in [*self._answering]:
            task.cancel()
            await asyncio.wait([task])
        self._listening = False
        if self._asked:
            with contextlib.suppress(asyncio.TimeoutError):
                await with_deadline(FAREWELL_SECONDS, self._say_farewell("ended"))
