"""The name of a channel selects its host, and several hosts work as one broker."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Sequence

import pytest

from django_sockets import PublishError, SubscribeError
from django_sockets.backends.host_reads import read_from_hosts
from django_sockets.backends.memory_history import MemoryHistoryCalls
from django_sockets.backends.sharded import ShardedBroker, sharded_broker
from django_sockets.broker import Limits, SupportsQueue
from django_sockets.errors import BrokerClosed, ConfigurationError, HistoryError, PresenceError
from django_sockets.registry import open_broker
from django_sockets.url import BrokerURL

HOSTS = ("redis://a.example", "redis://b.example", "redis://c.example")
FOURTH = "redis://d.example"
CHANNELS = [f"room:{number}" for number in range(4000)]


class Host:
    """A host whose replies the test controls.

    Attributes:
        published: payloads with their channels, in the order of the calls.
        wanted: what is subscribed.
        held: while it is there and not set, a call waits for it.
        leaving: while it is there and not set, an unsubscribe call waits for it.
    """

    limits = Limits()

    def __init__(self, url: BrokerURL) -> None:
        self.url = url
        self.published: list[tuple[bytes, tuple[str, ...]]] = []
        self.wanted: set[str] = set()
        self.held: asyncio.Event | None = None
        self.leaving: asyncio.Event | None = None
        self.refusal: Exception | None = None
        self.closed = 0

    async def publish(
        self, channels: Sequence[str], payload: bytes, headers: Sequence[bytes] = ()
    ) -> None:
        self.published.append((payload, tuple(channels)))
        await self._answer(PublishError, failed=channels)

    async def subscribe(self, channels: Sequence[str]) -> None:
        self.wanted.update(channels)
        try:
            await self._answer(SubscribeError, channels=channels)
        except BaseException:
            self.wanted.difference_update(channels)
            raise

    async def unsubscribe(self, channels: Sequence[str]) -> None:
        self.wanted.difference_update(channels)
        if self.leaving is not None:
            await self.leaving.wait()

    async def aclose(self) -> None:
        self.closed += 1

    async def _answer(self, error: type[Exception], **about: object) -> None:
        if self.held is not None:
            await self.held.wait()
        if self.refusal is not None:
            raise error(self.url, "refused", **about) from self.refusal  # type: ignore[call-arg]


class Hosts:
    """A broker of several hosts."""

    def __init__(self, *urls: str) -> None:
        url = BrokerURL.parse(" ".join(urls or HOSTS))
        self.hosts = [Host(shard) for shard in url.shards]
        self.broker = ShardedBroker(url, self.hosts)

    def host_of(self, channel: str) -> str:
        """The URL of the host that has a channel."""
        return str(self.hosts[self.broker._pick(channel)].url)

    def one_each(self) -> list[str]:
        """A channel of each host, in the order of the hosts."""
        found = {self.host_of(channel): channel for channel in CHANNELS}
        return [found[str(host.url)] for host in self.hosts]


@pytest.fixture
def three() -> Hosts:
    return Hosts()


def test_each_host_has_its_share(three: Hosts) -> None:
    shares = Counter(map(three.host_of, CHANNELS))
    assert set(shares) == set(HOSTS)
    assert all(1200 < share < 1470 for share in shares.values()), shares


def test_a_fourth_host_takes_a_quarter_and_nothing_else_moves(three: Hosts) -> None:
    four = Hosts(*HOSTS, FOURTH)
    moved = [c for c in CHANNELS if three.host_of(c) != four.host_of(c)]
    assert 850 < len(moved) < 1150
    assert {four.host_of(channel) for channel in moved} == {FOURTH}


def test_a_host_that_leaves_moves_no_channel_of_the_others(three: Hosts) -> None:
    two = Hosts(*HOSTS[:2])
    stay = [c for c in CHANNELS if three.host_of(c) != HOSTS[2]]
    assert [two.host_of(c) for c in stay] == [three.host_of(c) for c in stay]


def test_the_order_of_the_list_credentials_and_options_do_not_matter(three: Hosts) -> None:
    urls = [HOSTS[2], "redis://user:secret@a.example?probe_interval_seconds=3", HOSTS[1]]
    other = Hosts(*urls)

    def bare(url: str) -> str:
        return url.replace("user:***@", "")

    assert [bare(other.host_of(c)) for c in CHANNELS] == [three.host_of(c) for c in CHANNELS]


def test_another_process_picks_the_same_hosts(three: Hosts) -> None:
    code = (
        "import sys; from unit.test_sharded import CHANNELS, Hosts\n"
        "print(*map(Hosts().host_of, CHANNELS))"
    )
    told = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONHASHSEED": "1", "PYTHONPATH": ":".join(sys.path)},
    )
    assert told.stdout.split() == [three.host_of(channel) for channel in CHANNELS]


async def test_a_call_to_one_host_does_not_overtake_one_to_several(three: Hosts) -> None:
    rooms = three.one_each()
    calls = [
        asyncio.ensure_future(three.broker.publish(channels, payload))
        for channels, payload in [
            (rooms, b"1"),
            (rooms[:1], b"2"),
            (rooms[1:], b"3"),
            (rooms, b"4"),
        ]
    ]
    await asyncio.gather(*calls)
    order = [[payload for payload, _ in host.published] for host in three.hosts]
    assert order == [[b"1", b"2", b"4"], [b"1", b"3", b"4"], [b"1", b"3", b"4"]]


async def test_a_cancelled_publish_leaves_no_hole_in_the_order(three: Hosts) -> None:
    (room, *_) = three.one_each()
    three.hosts[0].held = asyncio.Event()
    call = asyncio.ensure_future(three.broker.publish([room], b"1"))
    await asyncio.sleep(0)
    call.cancel()
    await asyncio.wait([call])
    three.hosts[0].held.set()
    await three.broker.publish([room], b"2")
    assert [payload for payload, _ in three.hosts[0].published] == [b"1", b"2"]


async def test_the_error_names_the_host_and_its_channels_and_the_others_took_theirs(
    three: Hosts,
) -> None:
    rooms = three.one_each()
    three.hosts[1].refusal = ConnectionError("down")
    with pytest.raises(PublishError, match=r"b\.example") as raised:
        await three.broker.publish(rooms, b"x")
    assert raised.value.failed == (rooms[1],)
    assert raised.value.unknown == ()
    assert [len(host.published) for host in three.hosts] == [1, 1, 1]


async def test_subscribe_is_all_or_nothing_and_leaves_what_others_asked_for(three: Hosts) -> None:
    rooms = three.one_each()
    await three.broker.subscribe(rooms[:1])
    three.hosts[2].refusal = ConnectionError("down")
    with pytest.raises(SubscribeError, match=r"c\.example") as raised:
        await three.broker.subscribe(rooms)
    assert raised.value.channels == tuple(rooms)
    assert [host.wanted for host in three.hosts] == [{rooms[0]}, set(), set()]


async def test_a_cancelled_subscribe_wants_nothing(three: Hosts) -> None:
    rooms = three.one_each()
    three.hosts[1].held = asyncio.Event()
    call = asyncio.ensure_future(three.broker.subscribe(rooms))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert [len(host.wanted) for host in three.hosts] == [1, 1, 1]
    call.cancel()
    await asyncio.wait([call])
    assert [host.wanted for host in three.hosts] == [set()] * 3


async def test_a_failed_subscribe_leaves_a_later_one_alone(three: Hosts) -> None:
    rooms = three.one_each()
    held = three.hosts[1].held = asyncio.Event()
    first = asyncio.ensure_future(three.broker.subscribe(rooms))
    await asyncio.sleep(0)
    await three.broker.subscribe(rooms[:1])
    three.hosts[1].refusal = ConnectionError("down")
    held.set()
    with pytest.raises(SubscribeError):
        await first
    assert [host.wanted for host in three.hosts] == [{rooms[0]}, set(), set()]


@pytest.mark.parametrize("turns", range(1, 4))
async def test_the_last_call_decides(three: Hosts, turns: int) -> None:
    rooms = three.one_each()
    coming = asyncio.ensure_future(three.broker.subscribe(rooms))
    for _ in range(turns):
        await asyncio.sleep(0)
    await three.broker.unsubscribe(rooms[:2])
    await coming
    assert [host.wanted for host in three.hosts] == [set(), set(), {rooms[2]}]
    await three.broker.subscribe(rooms)
    assert [host.wanted for host in three.hosts] == [{room} for room in rooms]


async def test_an_unsubscribe_that_one_host_delays_ends_no_later_subscription(
    three: Hosts,
) -> None:
    rooms = three.one_each()
    await three.broker.subscribe(rooms)
    delayed = three.hosts[0].leaving = asyncio.Event()
    leaving = asyncio.ensure_future(three.broker.unsubscribe(rooms))
    await asyncio.sleep(0)
    await three.broker.subscribe(rooms[:2])
    delayed.set()
    await leaving
    assert [host.wanted for host in three.hosts] == [{rooms[0]}, {rooms[1]}, set()]


async def test_aclose_closes_every_host_and_may_be_called_twice(three: Hosts) -> None:
    rooms = three.one_each()
    await three.broker.aclose()
    await three.broker.aclose()
    assert all(host.closed for host in three.hosts)
    with pytest.raises(BrokerClosed):
        await three.broker.publish(rooms, b"x")
    with pytest.raises(BrokerClosed):
        await three.broker.subscribe(rooms)


def test_queues_need_every_host(three: Hosts) -> None:
    url = BrokerURL.parse("memory://one memory://two")
    memory = open_broker(url)
    part = open_broker(url.shards[0])
    assert isinstance(memory, SupportsQueue)
    assert not isinstance(sharded_broker(url, [part, three.hosts[0]]), SupportsQueue)


async def test_a_host_that_cannot_keep_messages_is_named(three: Hosts) -> None:
    with pytest.raises(ConfigurationError, match=r"example.*cannot keep messages"):
        await three.broker.read_history({"room": 10})
    with pytest.raises(ConfigurationError, match=r"example.*cannot keep messages"):
        await three.broker.subscribe_with_history({"room": 10})
    assert all(not host.wanted for host in three.hosts)


def test_history_is_refused_when_a_host_cannot_keep_messages(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(MemoryHistoryCalls, "read_history")
    with pytest.raises(ConfigurationError, match=r"memory://one.*cannot keep messages"):
        open_broker(
            "memory://one?history_messages=1&history_seconds=1 fakeredis://two?"
            "history_messages=1&history_seconds=1"
        )


# Reading from several hosts

EACH = ["one", "two", "three", "one again"]


def by_part(channels: Iterable[str]) -> dict[int, list[int]]:
    return {0: [0, 3], 1: [1], 2: [2]}


@pytest.mark.parametrize("error", [HistoryError, PresenceError])
async def test_a_read_asks_all_hosts_at_once_and_names_those_that_fail(
    error: type[HistoryError] | type[PresenceError],
) -> None:
    url = BrokerURL.parse(" ".join(HOSTS))
    failing: set[int] = set()
    asked: list[list[str]] = []
    every = asyncio.Event()

    async def read(number: int, channels: list[str]) -> dict[str, str]:
        asked.append(channels)
        if len(asked) % 3 == 0:
            every.set()
        await asyncio.wait_for(every.wait(), 10)
        if number in failing:
            raise error(url.shards[number], "refused", channels=channels) from OSError(number)
        return {channel: channel.upper() for channel in reversed(channels)}

    found = await read_from_hosts(url, EACH, by_part, read, error)
    assert list(found.items()) == [(channel, channel.upper()) for channel in EACH]
    assert asked == [["one", "one again"], ["two"], ["three"]]
    failing |= {0, 2}
    with pytest.raises(error) as caught:
        await read_from_hosts(url, EACH, by_part, read, error)
    assert caught.value.channels == ("one", "three", "one again")
    assert caught.value.reason == f"{HOSTS[0]}: refused; {HOSTS[2]}: refused"
    assert isinstance(caught.value.__cause__, OSError)


async def test_an_error_of_another_kind_passes_a_read_of_several_hosts() -> None:
    url = BrokerURL.parse(" ".join(HOSTS))

    async def read(number: int, channels: list[str]) -> dict[str, str]:
        raise PresenceError(url, "refused") if number else BrokerClosed(url)

    with pytest.raises(BrokerClosed):
        await read_from_hosts(url, EACH, by_part, read, PresenceError)
