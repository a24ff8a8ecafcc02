"""Test tools of other projects can observe and replace parts of the library with `overrides`."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial

import pytest

from django_sockets import open_broker, open_hub
from django_sockets.broker import Broker, Sink
from django_sockets.conf import default_config, load_config
from django_sockets.overrides import (
    observe_publishes,
    override_database_context,
    override_default_config,
)
from django_sockets.runtime.hooks import call_hook, call_in_thread
from django_sockets.url import BrokerURL


async def test_each_observer_sees_a_publish_and_can_keep_it_from_channels() -> None:
    seen: list[tuple[Sequence[str], bytes, bool]] = []

    def without_first(channels: Sequence[str], payload: bytes, is_text: bool) -> Sequence[str]:
        seen.append((channels, payload, is_text))
        return channels[1:]

    async with open_hub("memory://observed") as hub, hub.subscribe("a", "b", "c") as events:
        with observe_publishes(without_first), observe_publishes(without_first):
            await hub.publish(["a", "b", "c"], b"1", is_text=True)
            await hub.publish("a", b"2")
        await hub.publish("b", b"3")
        received = [await anext(events), await anext(events)]
    assert seen[:2] == [(["a", "b", "c"], b"1", True), (["b", "c"], b"1", True)]
    assert [(event.channel, event.payload) for event in received] == [("c", b"1"), ("b", b"3")]


async def test_an_observer_that_fails_fails_the_publish_and_is_removed_at_the_end() -> None:
    def refuse(channels: Sequence[str], payload: bytes, is_text: bool) -> Sequence[str]:
        raise LookupError("unexpected broadcast")

    async with open_hub("memory://refused") as hub:
        with pytest.raises(LookupError), observe_publishes(refuse):
            await hub.publish("a", b"1")
        await hub.publish("a", b"2")
        assert hub.stats()["published"] == 1


def test_the_newest_default_configuration_is_in_force_whichever_block_ends_first() -> None:
    before = default_config()
    first = override_default_config(load_config("memory://first"))
    second = override_default_config("memory://second")
    first.__enter__()
    second.__enter__()
    assert str(default_config().url) == "memory://second"
    first.__exit__(None, None, None)
    assert str(default_config().url) == "memory://second"
    second.__exit__(None, None, None)
    assert default_config() == before


async def test_a_factory_can_put_its_own_broker_around_the_real_one() -> None:
    opened: list[Broker] = []

    def factory(url: BrokerURL, sink: Sink) -> Broker:
        opened.append(open_broker(url, sink))
        return opened[-1]

    plain = load_config("memory://wrapped")
    wrapped = dataclasses.replace(plain, open_broker=factory)
    assert wrapped != plain
    async with open_hub(wrapped) as hub, hub.subscribe("a") as events:
        await hub.publish("a", b"1")
        assert (await anext(events)).payload == b"1"
    async with open_hub(plain):
        assert len(opened) == 1


async def test_a_database_context_surrounds_each_def_hook() -> None:
    steps: list[str] = []

    @contextlib.contextmanager
    def context() -> Iterator[None]:
        steps.append("in")
        yield
        steps.append("out")

    in_thread = partial(call_in_thread, load_config("memory://").settings)
    with override_database_context(context):
        await call_hook(steps.append, ["hook"], in_thread)
    await call_hook(steps.append, ["later"], in_thread)
    assert steps == ["in", "hook", "out", "later"]
