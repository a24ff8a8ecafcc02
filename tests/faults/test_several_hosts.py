"""If one of several independent hosts fails under load, only its own channels are affected."""

from __future__ import annotations

import contextlib
from asyncio import sleep, to_thread
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

import pytest

from django_sockets import PublishError, open_broker
from django_sockets.backends.sharded import ShardedBroker
from django_sockets.testing.contract.base import RecordingSink
from django_sockets.testing.contract.faults import quick
from django_sockets.testing.servers import CacheServer, ServerUnavailable, ValkeyServer
from support.faults.harness import CHANNELS, under_load

pytestmark = [pytest.mark.load, pytest.mark.timeout(120)]

BACK_SECONDS = 2.0


@pytest.fixture
def hosts(missing: Callable[[str], NoReturn]) -> Iterator[list[CacheServer]]:
    with contextlib.ExitStack() as stack:
        try:
            yield [stack.enter_context(ValkeyServer()) for _ in range(3)]
        except ServerUnavailable as exc:
            missing(str(exc))


async def on_host(url: str, host: int, channels: Sequence[str]) -> tuple[list[str], list[str]]:
    """The channels that are on one of the hosts, and those that are not."""
    broker = open_broker(url, RecordingSink())
    assert isinstance(broker, ShardedBroker)
    await broker.aclose()
    there = [channel for channel in channels if broker._pick(channel) == host]
    return there, [channel for channel in channels if channel not in there]


async def test_a_killed_host_takes_its_own_channels_with_it_and_no_others(
    hosts: list[CacheServer],
) -> None:
    url = quick(" ".join(host.url for host in hosts))
    lost, spared = await on_host(url, 1, CHANNELS)
    (silent, *_), (unheard, *_) = await on_host(url, 1, [f"unheard:{i}" for i in range(20)])
    async with under_load(url) as load:
        load.expect_untouched(spared)
        await to_thread(hosts[1].kill)
        gone = load.moment("the loss")
        await sleep(1.5)
        await load.moment("1.5 s without it").traffic(within_seconds=0.5, channels=spared)
        failures = [failure for failure in load.traffic.failures if failure.began >= gone.at]
        assert {failure.channel for failure in failures} == set(lost)
        with pytest.raises(PublishError) as raised:
            await load.reader.publish([silent, unheard], b"x")
        assert f"127.0.0.1:{hosts[1].port}" in str(raised.value)
        assert raised.value.failed == (silent,)
        assert raised.value.unknown == ()
        await to_thread(hosts[1].start)
        await load.moment("the return").traffic(within_seconds=BACK_SECONDS)
        back = {channel for gap in load.gaps(gone) for channel in gap.channels}
        assert back == set(lost)
