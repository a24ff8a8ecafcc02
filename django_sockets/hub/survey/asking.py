"""Asks surveys, and collects the answers."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from ...delivery.message import Delivery
from .messages import Question, new_answers_channel, read_answer
from .report import ProcessReport

if TYPE_CHECKING:
    from ..hub import Hub

__all__ = ["WINDOW_SECONDS", "Answer", "Answers", "Survey"]

WINDOW_SECONDS = 1.0
"""The default time for which answers are collected."""
MOST_ANSWERS = 10_000
"""The most answers that wait to be taken. Further ones replace the oldest."""
MOST_QUESTIONS = 100


class Answer(NamedTuple):
    """The answer of one process.

    Attributes:
        report: the report of the process.
        seconds: the time from the question to the answer; None for the farewell of a process that
            answers no more.
        in_time: it belongs to the newest question, or is a farewell.
    """

    report: ProcessReport
    seconds: float | None
    in_time: bool


class Answers(NamedTuple):
    """The result of one question.

    Attributes:
        answers: the answers that have arrived since the last question, the oldest first. There may
            be late ones of earlier questions among them.
        interrupted: the connection to the broker was lost, so that answers may be missing.
    """

    answers: list[Answer]
    interrupted: bool


class Survey:
    """Asks every process with connections. Use it as `async with Survey(hub) as survey:`.

    Its methods run on the event loop of the hub. Between two questions it stays subscribed, so that
    late answers are collected, too.
    """

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._channel = new_answers_channel()
        self._asked: dict[str, float] = {}
        self._arrived: deque[Answer] = deque(maxlen=MOST_ANSWERS)
        self._newest = ""
        self._interrupted = False

    async def __aenter__(self) -> Survey:
        """Subscribe to the answers. Raises SubscribeError."""
        await self._hub.add_internal(self, self._channel)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._hub.remove(self)

    async def ask(self, window_seconds: float = WINDOW_SECONDS) -> Answers:
        """Ask a question, and collect answers for `window_seconds`.

        Raises:
            PublishError: the question may not have reached the other processes.
            BrokerClosed: the hub was closed.
        """
        question = Question(os.urandom(8).hex(), self._channel)
        self._newest = question.id
        self._asked[question.id] = self._hub.loop.time()
        while len(self._asked) > MOST_QUESTIONS:
            del self._asked[next(iter(self._asked))]
        await self._hub.publish_control(question.pack())
        await asyncio.sleep(window_seconds)
        answers, interrupted = list(self._arrived), self._interrupted
        self._arrived.clear()
        self._interrupted = False
        return Answers(answers, interrupted)

    def on_delivery(self, delivery: Delivery) -> None:
        """Keep an answer."""
        found = read_answer(delivery.payload)
        if found is None:
            return
        question, report = found
        if not question:
            self._arrived.append(Answer(report, None, True))
        elif question in self._asked:
            seconds = self._hub.loop.time() - self._asked[question]
            self._arrived.append(Answer(report, seconds, question == self._newest))

    def on_gap(self, channels: Sequence[str], reason: str) -> None:
        """Note that answers may be missing."""
        self._interrupted = True
