"""What a broker makes of the answers to its scripts; and that it asks nothing without rules."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from django_sockets.backends.client import open_reads
from django_sockets.broker import Broker, SupportsHistory
from django_sockets.conf import load_config
from django_sockets.delivery.envelope import Publisher
from django_sockets.errors import HistoryError, PublishError
from django_sockets.history import HistoryReply, HistoryStatus, Position, position_field, with_field
from django_sockets.registry import open_broker
from django_sockets.testing.contract.history import HistoryRecorder
from support.scripted_server import Conversation, ScriptedServer, encode, push

ROOM, PLAIN = "kept:1", "plain"
EPOCH, TAG = b"epoch678", b"tag of 16 bytes!"
LINE, OTHER_LINE, NONE = b"a" * 40, b"b" * 40, b"0" * 40
NEWEST = Position(EPOCH, 5, TAG, bytes.fromhex("aa" * 8))
OPTIONS = "dead_peer_seconds=0.4&probe_interval_seconds=0.1&publish_timeout_seconds=2"
RULES = {"kept:": {"messages": 10, "seconds": 60}}


def page(line: bytes = LINE, former: bytes = NONE, *messages: bytes, status: int = 1) -> bytes:
    return encode([EPOCH, b"5", TAG, line, former, status, list(messages)])


class Scripted:
    """A scripted server, and a broker with history whose sink records."""

    def __init__(self, server: ScriptedServer, broker: Broker, sink: HistoryRecorder) -> None:
        self.server = server
        self.broker = broker
        self.sink = sink
        self.publisher = Publisher()
        self.line, self.former = LINE, NONE
        server.answers["SCRIPT"] = encode(b"sha")
        server.answers["INFO"] = self._info

    def _info(self, conversation: Conversation, command: list[bytes]) -> bytes | None:
        if command[1:] != [b"replication"]:
            return None
        return encode(
            b"# Replication\r\nrole:%s\r\nmaster_replid:%s\r\nmaster_replid2:%s\r\n"
            % (self.server.role, self.line, self.former)
        )

    @property
    def history(self) -> SupportsHistory:
        assert isinstance(self.broker, SupportsHistory)
        return self.broker

    def headers(self, *channels: str) -> list[bytes]:
        return self.publisher.headers(channels, is_text=False)


@asynccontextmanager
async def scripted(history: Any = RULES, options: str = "") -> AsyncIterator[Scripted]:
    async with ScriptedServer() as server:
        sink = HistoryRecorder()
        url = f"{server.url}?{OPTIONS}{options}"
        source = {"url": url, "history": history} if history else url
        broker = open_broker(load_config(source).url, sink)
        yield Scripted(server, broker, sink)
        await broker.aclose()


@pytest.fixture
async def world() -> AsyncIterator[Scripted]:
    async with scripted() as world:
        yield world


Answer = Callable[[Conversation, list[bytes]], "bytes | None"]


def in_turn(*answers: bytes) -> Answer:
    """Answer with each of these, and then with the last one."""
    left = list(answers)

    def answer(*_: Any) -> bytes:
        return left.pop(0) if len(left) > 1 else left[0]

    return answer


# Without a rule


@pytest.mark.parametrize("history", [None, RULES])
async def test_the_commands_of_a_channel_without_a_rule_do_not_change(history: Any) -> None:
    async with scripted(history) as world:
        written: list[list[bytes]] = []

        def record(_: Conversation, command: list[bytes]) -> None:
            written.append(command)

        for verb in ("PUBLISH", "SUBSCRIBE", "UNSUBSCRIBE", "EVALSHA"):
            world.server.answers[verb] = record
        await world.broker.subscribe([PLAIN])
        (header,) = world.headers(PLAIN)
        await world.broker.publish([PLAIN], b"payload", [header])
        await world.broker.publish([PLAIN], b"bare")
        name = b"django_sockets:{plain}"
        await world.sink.until("message", PLAIN, b"bare")
        await world.broker.unsubscribe([PLAIN])
        await world.server.until(lambda: any(c[0] == b"UNSUBSCRIBE" for c in written))
        commands = [c for c in written if b":probe:" not in c[1]]
        assert commands[0][:2] == [b"SUBSCRIBE", name]
        assert commands[1:3] == [
            [b"PUBLISH", name, header + b"payload"],
            [b"PUBLISH", name, b"bare"],
        ]
        assert world.server.asked["EVALSHA"] == 0


async def test_a_broker_without_rules_sends_no_command_of_the_history() -> None:
    async with scripted(None) as world:
        await world.broker.subscribe([ROOM])
        await world.broker.publish([ROOM], b"payload", world.headers(ROOM))
        probes = world.server.asked["PUBLISH"]
        await world.server.until(lambda: world.server.asked["PUBLISH"] >= probes + 3)
        assert world.server.asked["ROLE"] >= 3
        for verb in ("SCRIPT", "EVALSHA", "INFO REPLICATION"):
            assert world.server.asked[verb] == 0


# Publishing


async def test_one_call_publishes_to_channels_with_and_without_a_rule(world: Scripted) -> None:
    field = position_field(EPOCH, 1, bytes(16))
    world.server.answers["EVALSHA"] = encode([1, field])
    await world.broker.subscribe([PLAIN])
    headers = world.headers(PLAIN, ROOM)
    await world.broker.publish([PLAIN, ROOM], b"x", headers)
    await world.sink.until("message", PLAIN, headers[0] + b"x")
    assert world.server.asked["EVALSHA"] == 1


async def test_the_arguments_of_a_kept_publish(world: Scripted) -> None:
    seen: list[list[bytes]] = []

    def answer(_: Conversation, command: list[bytes]) -> bytes:
        seen.append(command)
        return encode([1, b"f" * 43])

    world.server.answers["EVALSHA"] = answer
    (header,) = world.headers(ROOM)
    await world.broker.publish([ROOM], b"payload", [header])
    (command,) = seen
    assert command[2:6] == [b"1", b"django_sockets:{kept:1}:h", with_field(header), b"payload"]
    assert command[6:8] == [b"10", b"60000"]
    assert len(command[8]) == 8
    assert command[9:] == [b"PUBLISH", b"django_sockets:{kept:1}", b"65536"]


@pytest.mark.parametrize(
    ("answer", "failed"),
    [
        ("-READONLY You can't write against a read only replica.", True),
        ("-MISCONF Redis is configured to save RDB snapshots", True),
        ("-NOREPLICAS Not enough good replicas to write.", True),
        ("-LOADING", True),
        ("-BUSY", True),
        ("-NOPERM User a has no permissions to run the 'evalsha' command", True),
        ("-NOSCRIPT No matching script.", True),
        ("-NOPERM ACL failure in script: no permissions to run the 'publish' command", False),
        ("-ERR something else", False),
        ("-OOM command not allowed", False),
        (":5", False),
        ("*1\r\n:5", False),
    ],
)
async def test_the_outcome_of_a_kept_publish(world: Scripted, answer: str, failed: bool) -> None:
    world.server.answers["EVALSHA"] = answer.encode() + b"\r\n"
    with pytest.raises(PublishError) as error:
        await world.broker.publish([ROOM], b"x", world.headers(ROOM))
    assert (error.value.failed, error.value.unknown) == (((ROOM,), ()) if failed else ((), (ROOM,)))


async def test_an_unkept_message_is_counted_and_logged_once(
    world: Scripted, caplog: pytest.LogCaptureFixture
) -> None:
    world.server.answers["EVALSHA"] = encode([0, b""])
    for _ in range(3):
        await world.broker.publish([ROOM], b"x", world.headers(ROOM))
    assert world.history.unkept == 3
    assert sum("out of memory" in record.message for record in caplog.records) == 1


async def test_a_missing_script_is_loaded_and_the_order_is_kept(world: Scripted) -> None:
    taken: list[bytes] = []
    missing = [True, True]

    def answer(_: Conversation, command: list[bytes]) -> bytes:
        if missing:
            missing.pop()
            return b"-NOSCRIPT No matching script.\r\n"
        taken.append(command[5])
        return encode([1, b"f" * 43])

    world.server.answers["EVALSHA"] = answer
    calls = [
        world.broker.publish([ROOM], b"%d" % number, world.headers(ROOM)) for number in range(2)
    ]
    await asyncio.gather(*calls)
    assert taken == [b"0", b"1"]
    assert world.server.asked["SCRIPT LOAD"] == 2


async def test_a_message_that_a_later_one_has_passed_is_not_sent_again(world: Scripted) -> None:
    """Another process loads the script between the two."""
    taken: list[bytes] = []

    def answer(_: Conversation, command: list[bytes]) -> bytes:
        if command[5] == b"0" and not taken:
            return b"-NOSCRIPT No matching script.\r\n"
        taken.append(command[5])
        return encode([1, b"f" * 43])

    world.server.answers["EVALSHA"] = answer
    other = "kept:2"
    calls = [
        world.broker.publish([channel], payload, world.headers(channel))
        for channel, payload in ((ROOM, b"0"), (other, b"0"), (ROOM, b"1"))
    ]
    first, second, third = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(first, PublishError)
    assert first.failed == (ROOM,)
    assert "a later message of its channel" in first.reason
    assert (second, third) == (None, None)
    assert taken == [b"1", b"0"]


# Reading outside of the stream


@pytest.mark.parametrize(
    "answer", [":5", "-ERR no", "*0", "*7\r\n:1\r\n:1\r\n:1\r\n:1\r\n:1\r\n:1\r\n:1", "-LOADING"]
)
async def test_an_answer_that_is_no_page_is_an_error(world: Scripted, answer: str) -> None:
    world.server.answers["EVALSHA"] = answer.encode() + b"\r\n"
    with pytest.raises(HistoryError) as error:
        await world.history.read_history({ROOM: None})
    assert error.value.channels == (ROOM,)


async def test_a_missing_script_is_loaded_to_read(world: Scripted) -> None:
    world.server.answers["EVALSHA"] = in_turn(b"-NOSCRIPT No matching script.\r\n", page())
    assert (await world.history.read_history({ROOM: None}))[ROOM].position == NEWEST


async def test_a_server_that_is_down_is_an_error(world: Scripted) -> None:
    await world.server.__aexit__()
    with pytest.raises(HistoryError, match="cannot connect"):
        await world.history.read_history({ROOM: None})


# Reading on the subscribing connection


async def test_the_read_is_written_behind_the_subscription(world: Scripted) -> None:
    order: list[bytes] = []

    def note(_: Conversation, command: list[bytes]) -> None:
        order.append(command[0])

    def answer(_: Conversation, command: list[bytes]) -> bytes:
        order.append(command[0])
        return page()

    world.server.answers["SUBSCRIBE"] = note
    world.server.answers["EVALSHA"] = answer
    await world.history.subscribe_with_history({ROOM: NEWEST})
    assert order == [b"SUBSCRIBE", b"EVALSHA"]
    assert [seen[0] for seen in world.sink.seen] == ["reply"]


@pytest.mark.parametrize(
    "answer",
    ["-READONLY You can't write against a read only replica.", "-MOVED 1 127.0.0.1:1"],
)
async def test_a_read_at_the_wrong_server_loses_the_link(world: Scripted, answer: str) -> None:
    world.server.answers["EVALSHA"] = in_turn(answer.encode() + b"\r\n", page())
    await world.broker.subscribe([ROOM])
    (first,) = world.server.subscribers
    world.history.request_history(ROOM, NEWEST)
    (reply,) = await world.sink.replies(ROOM)
    assert first not in world.server.conversations
    assert reply.position == NEWEST
    # The loss stands before the page, which was read behind the new subscription.
    assert [seen[0] for seen in world.sink.seen] == ["lost", "reply"]


async def test_a_read_that_is_not_possible_now_is_repeated(world: Scripted) -> None:
    answers = (b"-ASK 1 127.0.0.1:1\r\n", b"-TRYAGAIN\r\n", b"-NOSCRIPT none\r\n", page())
    world.server.answers["EVALSHA"] = in_turn(*answers)
    await world.history.subscribe_with_history({ROOM: NEWEST})
    (reply,) = await world.sink.replies(ROOM)
    assert reply.position == NEWEST
    assert [seen[0] for seen in world.sink.seen] == ["reply"]


@pytest.mark.parametrize(
    "answer", ["-NOPERM no", ":5", "*7\r\n:1\r\n:1\r\n:1\r\n:1\r\n:1\r\n:1\r\n:1"]
)
async def test_a_refused_read_says_so_in_the_stream(world: Scripted, answer: str) -> None:
    world.server.answers["EVALSHA"] = answer.encode() + b"\r\n"
    await world.history.subscribe_with_history({ROOM: NEWEST})
    (reply,) = await world.sink.replies(ROOM)
    assert reply.status is HistoryStatus.UNAVAILABLE
    assert reply.problem
    assert reply.position is None


async def test_a_read_without_an_answer_is_given_up(
    world: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_reads, "READ_SECONDS", 0.05)
    world.server.answers["EVALSHA"] = b"-ASK 1 127.0.0.1:1\r\n"
    await world.history.subscribe_with_history({ROOM: NEWEST})
    assert await world.sink.replies(ROOM) == [HistoryReply.unavailable("no reply within 0.05 s")]
    world.server.answers["EVALSHA"] = page()
    world.history.request_history(ROOM, NEWEST)
    assert (await world.sink.replies(ROOM, 2))[1].position == NEWEST


async def test_a_server_that_is_down_ends_reads_in_time(
    world: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.server.answers["EVALSHA"] = page()
    await world.history.subscribe_with_history({ROOM: NEWEST})
    await world.server.__aexit__()
    monkeypatch.setattr(open_reads, "READ_SECONDS", 0.05)
    world.history.request_history(ROOM, NEWEST)
    assert (await world.sink.replies(ROOM, 2))[1].status is HistoryStatus.UNAVAILABLE


async def test_reads_are_sixteen_at_a_time(world: Scripted) -> None:
    names = [f"kept:{number}" for number in range(64)]
    asked = world.server.asked
    world.server.answers["EVALSHA"] = b""
    call = asyncio.ensure_future(world.history.subscribe_with_history(dict.fromkeys(names, NEWEST)))
    for turn in range(1, 5):
        await world.server.until(lambda: asked["EVALSHA"] >= 16 * turn)  # noqa: B023 - awaited
        (link,) = world.server.subscribers
        # Whatever was written before this subscription has arrived by then.
        pings = asked["SUBSCRIBE"]
        other = asyncio.ensure_future(world.broker.subscribe([f"{PLAIN}:{turn}"]))
        await world.server.until(lambda: asked["SUBSCRIBE"] > pings)  # noqa: B023 - awaited
        assert asked["EVALSHA"] == 16 * turn
        link.writer.write(page() * 16 + push(b"subscribe", b"django_sockets:{plain:%d}" % turn, 1))
        await other
    await call
    for name in names:
        assert len(await world.sink.replies(name)) == 1


async def test_a_loss_stands_before_a_page_in_the_same_packet(world: Scripted) -> None:
    world.server.answers["EVALSHA"] = page()
    await world.history.subscribe_with_history({ROOM: NEWEST})
    held: list[bytes] = []

    def subscribe(conversation: Conversation, command: list[bytes]) -> bytes:
        conversation.names.update(command[1:])
        held.extend(push(b"subscribe", name, 1) for name in command[1:])
        return b""

    def load(*_: Any) -> bytes:
        held.append(encode(b"sha"))
        return b""

    world.server.answers["SUBSCRIBE"] = subscribe
    world.server.answers["SCRIPT"] = load
    world.server.answers["EVALSHA"] = lambda *_: b"".join([*held, page()])
    (link,) = world.server.subscribers
    link.cut()
    world.history.request_history(ROOM, NEWEST)
    await world.sink.replies(ROOM, 2)
    assert [seen[0] for seen in world.sink.seen] == ["reply", "lost", "reply"]


async def test_a_link_that_is_cut_reads_again(world: Scripted) -> None:
    cut = [True]

    def answer(conversation: Conversation, _: list[bytes]) -> bytes:
        if cut:
            cut.pop()
            conversation.cut()
            return b""
        return page()

    world.server.answers["EVALSHA"] = answer
    await world.history.subscribe_with_history({ROOM: NEWEST, "kept:2": NEWEST})
    for name in (ROOM, "kept:2"):
        assert len(await world.sink.replies(name)) == 1


async def test_a_connection_with_resp2_cannot_read(world: Scripted) -> None:
    world.server.answers["HELLO"] = b"-ERR unknown command\r\n"
    await world.history.subscribe_with_history({ROOM: NEWEST})
    (reply,) = await world.sink.replies(ROOM)
    assert (reply.status, "RESP3" in reply.problem) == (HistoryStatus.UNAVAILABLE, True)


async def test_a_cancelled_call_subscribes_to_nothing(world: Scripted) -> None:
    world.server.answers["EVALSHA"] = b""
    await world.broker.subscribe(["kept:old"])
    call = asyncio.ensure_future(
        world.history.subscribe_with_history({ROOM: NEWEST, "kept:old": NEWEST})
    )
    await world.server.until(lambda: world.server.asked["EVALSHA"] == 2)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await world.server.until(lambda: world.server.asked["UNSUBSCRIBE"] == 1)
    assert await world.broker.subscribe(["kept:old"]) is None
    assert world.server.asked["SUBSCRIBE"] == 2


async def test_closing_ends_a_call_that_waits_for_its_page(world: Scripted) -> None:
    from django_sockets.errors import BrokerClosed

    world.server.answers["EVALSHA"] = b""
    call = asyncio.ensure_future(world.history.subscribe_with_history({ROOM: NEWEST}))
    await world.server.until(lambda: world.server.asked["EVALSHA"] == 1)
    await world.broker.aclose()
    with pytest.raises(BrokerClosed):
        await call


# The history id of a server


async def test_another_history_loses_the_link(world: Scripted) -> None:
    world.server.answers["EVALSHA"] = lambda *_: page(world.line, world.former)
    await world.history.subscribe_with_history({ROOM: NEWEST})
    probes = world.server.asked["INFO REPLICATION"]
    await world.server.until(lambda: world.server.asked["INFO REPLICATION"] > probes + 1)
    assert [seen[0] for seen in world.sink.seen] == ["reply"]
    world.line, world.former = OTHER_LINE, LINE
    await world.sink.until("lost", (ROOM,))
    world.history.request_history(ROOM, NEWEST)
    reply = (await world.sink.replies(ROOM, 2))[1]
    assert reply.position is not None
    assert reply.position.history_id == bytes.fromhex("bb" * 8)
    assert reply.previous_history_id == bytes.fromhex("aa" * 8)


async def test_a_page_of_another_history_loses_the_link_before_it(world: Scripted) -> None:
    world.server.answers["INFO"] = lambda *_: None  # Nothing about the replication.
    world.server.answers["EVALSHA"] = in_turn(page(), page(OTHER_LINE, LINE))
    await world.history.subscribe_with_history({ROOM: NEWEST})
    world.history.request_history(ROOM, NEWEST)
    await world.sink.replies(ROOM, 2)
    assert [seen[0] for seen in world.sink.seen] == ["reply", "lost", "reply"]


async def test_the_first_replica_changes_the_id_and_not_the_history(world: Scripted) -> None:
    world.server.answers["EVALSHA"] = lambda *_: page(world.line, world.former)
    await world.broker.subscribe([PLAIN])
    await world.history.subscribe_with_history({ROOM: NEWEST})
    world.line = OTHER_LINE
    await world.sink.until("renamed", (ROOM,), bytes.fromhex("bb" * 8))
    assert [seen[0] for seen in world.sink.seen] == ["reply", "renamed"]


async def test_another_process_behind_the_same_connection_loses_the_link(world: Scripted) -> None:
    world.server.answers["EVALSHA"] = lambda *_: page(world.line, world.former)
    await world.history.subscribe_with_history({ROOM: NEWEST})
    (conversation,) = world.server.subscribers
    conversation.run_id = "2" * 40
    world.line = OTHER_LINE
    await world.sink.until("lost", (ROOM,))


async def test_a_read_moves_to_the_connection_that_takes_over(world: Scripted) -> None:
    """The first connection cannot read; a rotation replaces it."""
    first: list[Conversation] = []

    def answer(conversation: Conversation, _: list[bytes]) -> bytes:
        first[:] = first or [conversation]
        return b"-ASK 1 127.0.0.1:1\r\n" if conversation is first[0] else page()

    world.server.answers["EVALSHA"] = answer
    await world.broker.subscribe([ROOM])
    world.history.request_history(ROOM, NEWEST)
    await world.server.until(lambda: world.server.asked["EVALSHA"] > 1)
    node = world.broker._node
    node._start_rotation()
    (reply,) = await world.sink.replies(ROOM)
    assert reply.position == NEWEST
    await node._rotating
    assert [seen[0] for seen in world.sink.seen] == ["reply"]
    # The page was given, and the connection that took over goes on reading.
    world.history.request_history(ROOM, NEWEST)
    assert len(await world.sink.replies(ROOM, 2)) == 2


async def test_a_page_that_a_failed_takeover_held_back_is_read_again() -> None:
    links: list[Conversation] = []
    calls: list[asyncio.Future[None]] = []

    def answer(conversation: Conversation, _: list[bytes]) -> bytes:
        if conversation not in links:
            links.append(conversation)
        if len(links) == 1:
            return b"-ASK 1 127.0.0.1:1\r\n"
        if not calls:  # The page follows when this channel is requested on the standby.
            calls.append(asyncio.ensure_future(world.broker.subscribe(["late"])))
            return b""
        return page()

    def subscribe(conversation: Conversation, command: list[bytes]) -> bytes | None:
        if calls and conversation is links[1]:
            return page()  # And no acknowledgement, so that the takeover fails.
        return None

    async with scripted(RULES, "&subscribe_timeout_seconds=1") as world:
        world.server.answers["EVALSHA"] = answer
        world.server.answers["SUBSCRIBE"] = subscribe
        await world.broker.subscribe([ROOM])
        world.history.request_history(ROOM, NEWEST)
        await world.server.until(lambda: world.server.asked["EVALSHA"] > 1)
        node = world.broker._node
        node._start_rotation()
        await world.server.until(lambda: bool(calls))
        await node._rotating
        (reply,) = await world.sink.replies(ROOM)
        assert reply.position == NEWEST
        world.history.request_history(ROOM, NEWEST)
        assert len(await world.sink.replies(ROOM, 2)) == 2
        await asyncio.wait(calls)
        calls[0].exception()
