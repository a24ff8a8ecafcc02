"""Subscriptions of a client that end while the client subscribes again.

If one of these fails, a client believes that it is subscribed, and gets nothing.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine, Iterable, Set
from typing import Any

from django_sockets.errors import SubscribeError
from django_sockets.history import Recovery
from django_sockets.protocol.entries import Admission
from django_sockets.protocol.problems import Problem
from django_sockets.protocol.subscriptions import Subscriptions
from django_sockets.protocol.tokens import Identity
from django_sockets.url import BrokerURL


class Owner:
    """A connection whose broker answers when the test says so."""

    max_subscriptions = 10

    def __init__(self) -> None:
        self.home = asyncio.get_running_loop()
        self.channels: set[str] = set()
        self.told: list[Any] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.answer = asyncio.Event()
        self.answer.set()
        self.failing: set[str] = set()
        self.watched: set[str] = set()

    def arrive(self, names: Iterable[str], watched: Set[str]) -> Owner:
        self.watched.update(watched)
        return self

    def unwatch(self, names: Iterable[str]) -> None:
        self.watched.difference_update(names)

    async def add(
        self, names: list[str], since: Any, replay: int, presence: bool
    ) -> dict[str, Recovery]:
        self.channels.update(names)
        await self.answer.wait()
        if self.failing.intersection(names):
            self.channels.difference_update(names)
            raise SubscribeError(BrokerURL.parse("memory://"), "no answer", channels=names)
        return {name: Recovery(presence={} if presence else None) for name in names}

    async def release(self) -> None: ...

    def cancel(self) -> None: ...

    async def leave(self, names: list[str]) -> None:
        self.channels.difference_update(names)

    async def subscribing_failed(self, exc: Exception) -> None:
        raise exc

    def control(self, payload: bytes) -> None:
        self.told.append(json.loads(payload))

    def spawn(self, work: Coroutine[Any, Any, None]) -> object:
        self.tasks.append(asyncio.ensure_future(work))
        return None


async def everything(channel: str, presence: bool) -> Problem | None:
    return None


ADMISSION = Admission(Identity(None, None), everything, lambda token: False)


async def subscribe(subscriptions: Subscriptions, *entries: Any) -> list[Any]:
    try:
        answers, _ = await subscriptions.subscribe(
            [{"channel": one} if isinstance(one, str) else one for one in entries], ADMISSION
        )
        return answers
    finally:
        subscriptions.settle()


def ended(channel: str, code: str) -> dict[str, Any]:
    return {"unsubscribed": channel, "code": code, "again": code == "expired"}


async def test_a_right_that_is_revoked_while_the_client_subscribes_is_gone() -> None:
    owner = Owner()
    subscriptions = Subscriptions(owner)
    owner.answer.clear()
    subscribing = asyncio.create_task(subscribe(subscriptions, "a", "b"))
    await asyncio.sleep(0.01)
    subscriptions.revoke({"a", "other"})
    assert owner.told == []
    owner.answer.set()
    assert await subscribing == [{"channel": "a"}, {"channel": "b"}]
    await asyncio.gather(*owner.tasks)
    assert owner.told == [ended("a", "revoked")]
    assert owner.channels == {"b"}


async def test_what_expires_while_it_is_renewed_by_a_subscribe_stays() -> None:
    owner = Owner()
    subscriptions = Subscriptions(owner)
    await subscribe(subscriptions, "a")
    subscriptions._by_name["a"].expires_at = now = owner.home.time()
    owner.answer.clear()
    subscribing = asyncio.create_task(subscribe(subscriptions, "a"))
    await asyncio.sleep(0.01)
    subscriptions.expire(now + 1)
    assert subscriptions.next_end > now + 1  # Else the timer would go off again and again.
    owner.answer.set()
    await subscribing
    subscriptions.expire(now + 1)
    assert (owner.told, owner.channels, owner.tasks) == ([], {"a"}, [])


async def test_a_subscribe_right_after_an_expiry_is_a_new_subscription() -> None:
    owner = Owner()
    subscriptions = Subscriptions(owner)
    await subscribe(subscriptions, "a")
    subscriptions._by_name["a"].expires_at = now = owner.home.time()
    subscriptions.expire(now)
    await subscribe(subscriptions, "a")  # Before the task that ends the old one has begun.
    await asyncio.gather(*owner.tasks)
    assert owner.told == [ended("a", "expired")]
    assert owner.channels == {"a"}
    await subscriptions.unsubscribe(["a"])
    assert owner.channels == set()


async def test_a_channel_that_the_application_leaves_meanwhile_is_told_after_the_answer() -> None:
    owner = Owner()
    subscriptions = Subscriptions(owner)
    owner.answer.clear()
    subscribing = asyncio.create_task(subscribe(subscriptions, "a"))
    await asyncio.sleep(0.01)
    owner.channels.clear()
    subscriptions.removed(["a"])
    owner.answer.set()
    await subscribing
    assert owner.told == [ended("a", "removed")]


async def test_a_broker_that_does_not_answer_makes_an_error_for_its_channels_only() -> None:
    owner = Owner()
    subscriptions = Subscriptions(owner)
    owner.failing = {"bad"}
    entries = ["good", {"channel": "bad", "replay": 1}]
    good, bad = await subscribe(subscriptions, *entries)
    assert good == {"channel": "good"}
    assert (bad["error"]["code"], bad["error"]["temporary"]) == ("unavailable", True)
    assert owner.told == []
