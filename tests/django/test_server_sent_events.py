"""Streams of server-sent events: complete across reconnects, refused to others, and bounded.

If one of these fails, a page misses a message without a gap, somebody reads messages that are not
meant for them, or a stream leaves something behind.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import random
import re
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, ExitStack
from typing import Any

import pytest
from django.contrib.auth.decorators import login_required, permission_required
from django.core.exceptions import PermissionDenied
from django.core.handlers.asgi import ASGIHandler
from django.http import HttpResponse
from django.test import override_settings
from django.urls import path

from django_sockets import ChannelError, ConfigurationError
from django_sockets.closing import async_close_sockets, async_revoke_channels
from django_sockets.conf import load_config
from django_sockets.hub.hub import Hub
from django_sockets.integration import event_id, events_view
from django_sockets.integration.server_sent_events import stream as stream_module
from django_sockets.middleware.watch import check_now
from django_sockets.runtime import close_shared_hubs
from django_sockets.runtime.shared_hubs import shared_hub
from django_sockets.signed_channels import channel_token
from django_sockets.testing.proxy import FaultProxy
from support.event_streams import opened

RULES = {"kept": {"messages": 5000, "seconds": 60}}
_names = itertools.count()


@pytest.fixture(params=["memory", "valkey"])
def config(request: pytest.FixtureRequest) -> Any:
    """The broker, with a history for the channels whose names begin with "kept"."""
    url = f"memory://events{next(_names)}"
    if request.param == "valkey":
        server = request.getfixturevalue("valkey_server")
        url = f"{server.url}?prefix=events{next(_names)}"
    return {"url": url, "history": RULES}


@pytest.fixture
def memory() -> Any:
    return {"url": f"memory://events{next(_names)}", "history": RULES}


class _Urls:
    """A URLconf."""

    def __init__(self, *views: Any) -> None:
        self.urlpatterns = list(views)


Serve = Callable[..., Any]


@pytest.fixture
async def serve(django_project: None) -> AsyncIterator[Serve]:
    """A function: view -> the ASGI application of a project with this view."""
    changes = ExitStack()  # Settings must be restored in reverse order.

    def with_view(view: Any, route: str = "", **settings: Any) -> ASGIHandler:
        changes.enter_context(
            override_settings(
                ROOT_URLCONF=_Urls(path(route, view)), **{"MIDDLEWARE": [], **settings}
            )
        )
        return ASGIHandler()

    yield with_view
    await close_shared_hubs()
    changes.close()


def hub_of(config: Any) -> Hub:
    return shared_hub(load_config(config))


async def say(config: Any, channel: str, *data: Any) -> None:
    for one in data:
        await hub_of(config).publish([channel], json.dumps(one).encode(), is_text=True)


def data_of(frames: list[Any]) -> list[Any]:
    return [frame["data"] for frame in frames if "data" in frame]


async def test_broadcasts_arrive_as_frames_of_the_protocol(config: Any, serve: Serve) -> None:
    async with opened(serve(events_view(["news", "kept:1"], config=config))) as stream:
        assert stream.status == 200
        assert stream.headers["content-type"] == "text/event-stream"
        assert stream.headers["cache-control"] == "no-store, no-transform"
        assert stream.headers["x-accel-buffering"] == "no"
        assert await stream.frame() == {"ready": {}}
        assert 1500 <= (stream.parser.retry or 0) <= 4500
        await say(config, "news", {"text": "grüße\n\rid: 1\n\n"})
        await say(config, "kept:1", 1)
        assert await stream.frame() == {
            "channel": "news",
            "data": {"text": "grüße\n\rid: 1\n\n"},
        }
        kept = await stream.frame()
        assert kept == {"channel": "kept:1", "data": 1, "position": kept["position"]}


async def test_a_client_that_comes_back_gets_each_missed_message_once(
    config: Any, serve: Serve
) -> None:
    app = serve(events_view(["kept:1", "kept:2", "kept:3"], config=config))
    last_id, got = None, []
    for number in range(0, 100, 10):
        async with opened(app, last_id=last_id) as stream:
            assert await stream.frame() == {"ready": {}}
            missed = range(max(0, number - 5), number)
            await say(config, f"kept:{number % 3 + 1}", *range(number, number + 5))
            got += data_of(await stream.frames(5 + len(missed)))
            last_id = stream.parser.last_id
        await say(config, f"kept:{number % 2 + 1}", *range(number + 5, number + 10))
    assert sorted(got) == list(range(95))
    assert all(got[n : n + 5] == sorted(got[n : n + 5]) for n in range(0, 95, 5))


async def test_the_id_of_one_channel_is_its_position(config: Any, serve: Serve) -> None:
    app = serve(events_view("kept:1", config=config))
    positions = [await hub_of(config).position("kept:1")]
    await say(config, "kept:1", 1, 2)
    async with opened(app, query={"last_event_id": positions[0]}) as stream:
        assert await stream.next() == ({"ready": {}}, positions[0], True)
        for number in (1, 2):
            event = await stream.next()
            assert event.last_id == event.frame["position"]
            assert event.frame["data"] == number
            positions.append(event.last_id)
    # The header is newer than the address: the browser keeps the address of the page.
    query = {"last_event_id": positions[0]}
    async with opened(app, query=query, last_id=positions[1]) as stream:
        assert data_of(await stream.frames(2)) == [2]


async def test_nothing_is_lost_on_a_channel_that_was_quiet(config: Any, serve: Serve) -> None:
    app = serve(events_view(["kept:1", "kept:2"], config=config))
    async with opened(app) as stream:
        await stream.frame()
    await say(config, "kept:2", "missed")
    async with opened(app, last_id=stream.parser.last_id) as stream:
        assert data_of(await stream.frames(2)) == ["missed"]


async def test_without_a_history_a_client_that_comes_back_gets_a_gap(
    config: Any, serve: Serve
) -> None:
    app = serve(events_view(["news", "kept:1"], config=config))
    async with opened(app) as stream:
        assert await stream.frame() == {"ready": {}}
    await say(config, "news", "missed")
    await say(config, "kept:1", "kept")
    async with opened(app, last_id=stream.parser.last_id) as stream:
        assert await stream.frame() == {"gap": ["news"], "reason": "history"}
        assert await stream.frame() == {"ready": {}}
        assert data_of([await stream.frame()]) == ["kept"]
        await say(config, "news", "live")
        assert data_of([await stream.frame()]) == ["live"]


async def test_a_history_that_is_gone_is_one_gap(config: Any, serve: Serve) -> None:
    app = serve(events_view(["kept:1", "kept:2"], config=config))
    at = await hub_of(config).position(["kept:1", "kept:2"])
    made_up = {**at, "kept:1": at["kept:2"]}  # It is of another channel.
    async with opened(app, last_id=event_id(made_up)) as stream:
        assert await stream.next() == ({"ready": {}}, event_id(made_up), True)
        gap = await stream.next()
        assert gap.frame == {"gap": ["kept:1"], "reason": "history"}
        assert gap.last_id == event_id(at)
    async with opened(app, last_id=gap.last_id) as stream:
        await say(config, "kept:1", 1)
        assert await stream.frame() == {"ready": {}}
        assert data_of([await stream.frame()]) == [1]
    app = serve(events_view("kept:1", config={**config, "history": {}}))
    async with opened(app, last_id=at["kept:1"]) as stream:
        frames = await stream.frames(2)
        assert {"gap": ["kept:1"], "reason": "history"} in frames


HUGE = "A" * 60_000
IDS = [
    "x",
    "0",
    ".",
    "-" * 43,
    "A" * 54,
    HUGE,
    "." * 5000,
    "a.b.c",
    "%00",
    "\xff\xfe",
    "null",
    "A" * 62,
]


@pytest.mark.parametrize("text", IDS, ids=range(len(IDS)))
@pytest.mark.parametrize("names", [["kept:1"], ["kept:1", "kept:2"]], ids=["one", "two"])
async def test_a_made_up_id_is_a_gap(
    memory: Any, serve: Serve, text: str, names: list[str]
) -> None:
    app = serve(events_view(names, config=memory))
    for where in ({"last_id": text}, {"query": {"last_event_id": text}}):
        async with opened(app, **where) as stream:
            assert stream.status == 200
            frames = await stream.frames(2)
            assert {"gap": names, "reason": "history"} in frames
            assert {"ready": {}} in frames
            await say(memory, "kept:1", "live")
            assert data_of([await stream.frame()]) == ["live"]


async def test_random_ids_never_break_a_stream(memory: Any, serve: Serve) -> None:
    names = [f"kept:{number}" for number in range(64)]
    app = serve(events_view(names, config=memory))
    good = event_id(await hub_of(memory).position(names))
    assert len(good) <= 4096
    chance = random.Random(12)
    for _ in range(40):
        at, end = sorted(chance.choices(range(len(good)), k=2))
        text = good[:at] + "".join(chance.choices("A.-_\t/", k=chance.randrange(9))) + good[end:]
        async with opened(app, last_id=text) as stream:
            gone: set[str] = set()
            while "ready" not in (frame := await stream.frame()):
                gone.update(frame["gap"])
            await say(memory, "kept:63", "live")
            while "data" not in (frame := await stream.frame()):
                gone.update(frame["gap"])
            assert frame["data"] == "live"
            # Channels whose label and position are whole continue.
            whole = [name for name in names if event_id({name: None}) not in text]
            assert gone >= set(whole)
    async with opened(app, last_id=good) as stream:
        assert await stream.frame() == {"ready": {}}
        assert len(data_of(await stream.frames(40))) == 40


async def test_a_replay_longer_than_the_queue_is_whole(config: Any, serve: Serve) -> None:
    app = serve(events_view("kept:1", replay=3000, config=config))
    await say(config, "kept:1", *range(3000))
    async with opened(app) as stream:
        assert await stream.frame() == {"ready": {}}
        assert data_of(await stream.frames(3000)) == list(range(3000))
        last_id = stream.parser.last_id
    async with opened(app, last_id=last_id) as stream:
        await say(config, "kept:1", "live")
        assert data_of(await stream.frames(2)) == ["live"]


async def test_a_stream_cut_before_its_replay_begins_with_a_gap(memory: Any, serve: Serve) -> None:
    app = serve(events_view("kept:1", replay=5, config=memory))
    await say(memory, "kept:1", *range(3))
    async with opened(app) as stream:
        ready = await stream.next()
    async with opened(app, last_id=ready.last_id) as stream:
        assert await stream.frame() == {"gap": ["kept:1"], "reason": "history"}


async def test_bytes_arrive_as_base64(config: Any, serve: Serve) -> None:
    async with opened(serve(events_view(["news", "kept:1"], config=config))) as stream:
        await stream.frame()
        for name in ("news", "kept:1"):
            await hub_of(config).publish([name], bytes(range(256)), is_text=False)
            event = await stream.next()
            assert base64.b64decode(event.frame["data"]) == bytes(range(256))
            assert (event.frame["base64"], event.frame["channel"]) == (True, name)
            assert event.has_id == (name == "kept:1")


async def test_line_breaks_between_values_stay_inside_their_event(
    memory: Any, serve: Serve
) -> None:
    async with opened(serve(events_view("news", config=memory))) as stream:
        await stream.frame()
        text = b'{"a":\r\n 1,\n\r "id": "x"\r\r\n}'
        await hub_of(memory).publish(["news"], text, is_text=True)
        assert await stream.next() == (
            {"channel": "news", "data": {"a": 1, "id": "x"}},
            event_id({"news": None}),
            False,
        )


async def test_a_comment_keeps_an_idle_stream_alive(memory: Any, serve: Serve) -> None:
    app = serve(events_view("news", keepalive_seconds=0.01, config=memory))
    async with opened(app) as stream:
        await stream.frame()
        while stream.parser.comments < 3:
            await stream.wrote()
        await say(memory, "news", 1)
        assert data_of([await stream.frame()]) == [1]


# Who may read


async def test_the_application_chooses_the_channels(memory: Any, serve: Serve) -> None:
    def room(request: Any, pk: int) -> str:
        return f"room:{pk}"

    async def rooms(request: Any, pk: int) -> list[Any]:
        return [f"room:{pk}", pk, pk]

    for choose in (room, rooms):
        app = serve(events_view(choose, config=memory), "rooms/<int:pk>/")
        async with opened(app, "/rooms/7/") as stream:
            await stream.frame()
            await say(memory, "room:8", "other")
            await say(memory, "room:7", "own")
            assert data_of([await stream.frame()]) == ["own"]


def denied(request: Any) -> Any:
    raise PermissionDenied


async def denied_later(request: Any) -> Any:
    raise PermissionDenied


REFUSING = {
    "def": (denied, 403),
    "async": (denied_later, 403),
    "none": (lambda request: None, 403),
    "empty": (lambda request: [], 403),
    "response": (lambda request: HttpResponse(status=404), 404),
    "unnamed": (lambda request: "", 403),
}


@pytest.mark.parametrize("name", REFUSING)
async def test_a_refusal_comes_before_the_stream(memory: Any, serve: Serve, name: str) -> None:
    choose, status = REFUSING[name]
    async with opened(serve(events_view(choose, config=memory))) as stream:
        assert stream.status == status
        assert stream.headers["content-type"] != "text/event-stream"
    assert hub_of(memory).stats()["event_streams"] == 0


async def test_only_get_opens_a_stream(memory: Any, serve: Serve) -> None:
    for method in ("POST", "HEAD", "DELETE"):
        async with opened(serve(events_view("news", config=memory)), method=method) as stream:
            assert (stream.status, stream.headers["allow"]) == (405, "GET")


WITH_LOGIN = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
]


async def test_only_users_get_in(memory: Any, serve: Serve, members: Any) -> None:
    ann = await members.do(members.create)
    cookie = {"cookie": f"sessionid={await members.do(members.login, ann)}"}
    view = events_view("news", config=memory)
    for wrapped, status in (
        (events_view("news", config=memory, require_user=True), 401),
        (login_required(view, login_url="/login/"), 302),
        (permission_required("members.none", raise_exception=True)(view), 403),
    ):
        app = serve(wrapped, MIDDLEWARE=WITH_LOGIN)
        async with opened(app) as stream:
            assert stream.status == status
        async with opened(app, headers={"cookie": "sessionid=made-up-made-up-made-up"}) as stream:
            assert stream.status == status
        async with opened(app, headers=cookie) as stream:
            assert stream.status == (403 if status == 403 else 200)


async def test_a_token_admits_its_user_to_its_channel(
    memory: Any, serve: Serve, members: Any
) -> None:
    ann, bob = [await members.do(members.create, name) for name in ("ann", "bob")]
    keys = [await members.do(members.login, user) for user in (ann, bob)]
    cookies = [{"cookie": f"sessionid={key}"} for key in keys]
    at = await hub_of(memory).position(["kept:7"])
    await say(memory, "kept:7", "paid")
    tokens = [channel_token("kept:7", user=ann, since=at), channel_token("news", user=None)]
    query = [("token", token) for token in tokens]
    app = serve(events_view(tokens=True, config=memory), MIDDLEWARE=WITH_LOGIN)
    async with opened(app, query=query, headers=cookies[0]) as stream:
        assert data_of(await stream.frames(2)) == ["paid"]
    for headers in (cookies[1], {}):
        async with opened(app, query=query, headers=headers) as stream:
            assert (stream.status, stream.body) == (403, b"token_foreign\n")
    async with opened(app, query=query[1:]) as stream:
        assert stream.status == 200
    for wrong, status in (
        ([("token", "x")], 403),
        ([("token", tokens[0] + "x")], 403),
        ([("token", "")], 403),
        ([], 403),
        ([("token", tokens[1])] * 65, 400),
        ([("token", channel_token(f"c{n}", user=None)) for n in range(65)], 400),
        ([("token", channel_token("a", user=None, expires_seconds=1e-9))], 403),
    ):
        async with opened(app, query=wrong, headers=cookies[0]) as stream:
            assert stream.status == status


async def test_a_stream_ends_with_its_token(memory: Any, serve: Serve) -> None:
    app = serve(events_view("free", tokens=True, config=memory))
    token = channel_token("news", user=None, expires_seconds=0.3)
    async with opened(app, query={"token": token}) as stream:
        await stream.frame()
        ended = {"unsubscribed": "news", "code": "expired", "again": True}
        assert await stream.end() == [ended]
    async with opened(app, query={"token": token}) as stream:
        assert (stream.status, stream.body) == (403, b"token_expired\n")


async def test_a_revoked_right_ends_the_stream(memory: Any, serve: Serve, members: Any) -> None:
    ann = await members.do(members.create)
    cookie = {"cookie": f"sessionid={await members.do(members.login, ann)}"}
    app = serve(events_view(tokens=True, config=memory), MIDDLEWARE=WITH_LOGIN)
    query = {"token": channel_token("news", user=ann)}
    async with opened(app, query=query, headers=cookie) as stream:
        await stream.frame()
        await async_revoke_channels("other", user=ann, config=memory)
        await say(memory, "news", "before")
        await stream.frame()
        await async_revoke_channels("news", user=ann, config=memory)
        assert await stream.end() == [{"unsubscribed": "news", "code": "revoked", "again": False}]
    async with opened(app, query=query, headers=cookie) as stream:
        assert (stream.status, stream.body) == (403, b"forbidden\n")


async def test_a_logout_ends_the_streams_of_the_session(
    memory: Any, serve: Serve, members: Any
) -> None:
    ann = await members.do(members.create)
    keys = [await members.do(members.login, ann) for _ in range(2)]
    app = serve(
        events_view("news", require_user=True), MIDDLEWARE=WITH_LOGIN, DJANGO_SOCKETS_CONFIG=memory
    )
    async with AsyncExitStack() as stack:
        one, two = [
            await stack.enter_async_context(opened(app, headers={"cookie": f"sessionid={key}"}))
            for key in keys
        ]
        for stream in (one, two):
            assert await stream.frame() == {"ready": {}}
        await members.do(members.logout, keys[0])
        (bye,) = await one.end()
        assert bye["bye"]["code"] == 4401
        await say(memory, "news", "still here")
        assert data_of([await two.frame()]) == ["still here"]
        await async_close_sockets(user=ann, code=4000)
        (bye,) = await two.end()
        assert bye["bye"]["code"] == 4000
    async with opened(app, headers={"cookie": f"sessionid={keys[0]}"}) as stream:
        assert stream.status == 401


async def test_a_session_that_vanishes_without_a_signal_ends_its_stream(
    memory: Any, serve: Serve, members: Any
) -> None:
    from django.contrib.sessions.models import Session

    ann = await members.do(members.create)
    key = await members.do(members.login, ann)
    app = serve(events_view("news", config=memory), MIDDLEWARE=WITH_LOGIN)
    async with opened(app, headers={"cookie": f"sessionid={key}"}) as stream:
        await stream.frame()
        await members.do(Session.objects.filter(session_key=key).delete)
        check_now()
        (bye,) = await stream.end()
        assert bye["bye"]["code"] == 4401


def pool_threads() -> set[threading.Thread]:
    return {one for one in threading.enumerate() if "ThreadPoolExecutor" in one.name}


async def test_open_streams_hold_no_database_connection_and_no_thread(
    memory: Any, serve: Serve, members: Any
) -> None:
    from django.db.backends.signals import connection_created

    opened_ones: list[Any] = []

    def note(connection: Any, **_: Any) -> None:
        opened_ones.append(connection)

    ann = await members.do(members.create)
    cookie = {"cookie": f"sessionid={await members.do(members.login, ann)}"}
    app = serve(events_view("news", config=memory, require_user=True), MIDDLEWARE=WITH_LOGIN)
    before = pool_threads()
    connection_created.connect(note)
    try:
        async with AsyncExitStack() as stack:
            for _ in range(5):
                stream = await stack.enter_async_context(opened(app, headers=cookie))
                await stream.frame()
            assert len(opened_ones) >= 5
            assert [one.connection for one in opened_ones] == [None] * len(opened_ones)
            for _ in range(2000):
                # A thread ends a moment after the order to end.
                if not pool_threads() - before:
                    break
                await asyncio.sleep(0.001)
            assert pool_threads() - before == set()
    finally:
        connection_created.disconnect(note)


# The end of a stream, and slow clients


PLACES = re.compile(r"/django_sockets/(integration|delivery|hub)/|/django/core/|/asgiref/")
"""The code of a stream and of its request. The tasks of brokers come and go."""


async def left(config: Any) -> dict[str, int]:
    """What streams have left behind: tasks, and members of the hub."""
    stats = hub_of(config).stats()
    codes = [getattr(task.get_coro(), "cr_code", None) for task in asyncio.all_tasks()]
    return {
        "tasks": len([code for code in codes if code and PLACES.search(code.co_filename)]),
        **{name: stats[name] for name in ("event_streams", "subscribers", "channels")},
    }


async def until_left(config: Any, before: dict[str, int]) -> None:
    """Wait until nothing more is there. A stream ends some turns of the loop after its response."""
    for _ in range(2000):
        if await left(config) == before:
            return
        await asyncio.sleep(0.001)
    assert await left(config) == before


@pytest.mark.parametrize("reads", [True, False], ids=["idle", "blocked"])
async def test_a_client_that_leaves_leaves_nothing(config: Any, serve: Serve, reads: bool) -> None:
    app = serve(events_view(["news", "kept:1"], config=config))
    async with opened(app) as stream:
        await stream.frame()
        await say(config, "kept:1", 1)
    before = await left(config)
    assert before["event_streams"] == before["subscribers"] == 0
    async with AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(opened(app)) for _ in range(10)]
        for stream in streams:
            await stream.frame()
            if not reads:
                stream.reads.clear()
        await say(config, "news", 1)
        if not reads:
            for stream in streams:
                await stream.blocked.wait()
        during = await left(config)
        assert during["event_streams"] == during["subscribers"] == 10
        assert during["tasks"] >= 10
    await until_left(config, before)


async def test_a_response_that_is_never_sent_leaves_nothing(
    memory: Any, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_module, "START_SECONDS", 0.05)
    dropping = ["support.event_middleware.Dropping"]
    app = serve(events_view("news", config=memory), MIDDLEWARE=dropping)
    before = await left(memory)
    async with opened(app) as stream:
        assert (stream.status, stream.body) == (200, b"something else")
        assert hub_of(memory).stats()["event_streams"] == 1
    await until_left(memory, before)


async def test_a_client_that_leaves_while_the_broker_is_slow_leaves_nothing(
    fresh_valkey_server: Any, serve: Serve
) -> None:
    config = {"url": f"{fresh_valkey_server.url}?subscribe_timeout_seconds=30"}
    app = serve(events_view("news", config=config))
    async with opened(app) as stream:
        await stream.frame()
    before = await left(config)
    fresh_valkey_server.pause()
    request = asyncio.ensure_future(leave_early(app))
    for _ in range(2000):
        if hub_of(config).stats()["event_streams"]:
            break
        await asyncio.sleep(0.001)
    assert hub_of(config).stats()["event_streams"] == 1
    request.cancel()
    await asyncio.wait([request])
    fresh_valkey_server.resume()
    await until_left(config, before)


async def leave_early(app: Any) -> None:
    async with opened(app) as stream:
        await stream.frame()


async def test_a_client_that_does_not_read_gets_a_gap(config: Any, serve: Serve) -> None:
    app = serve(events_view("kept:1", config=config))
    text = "x" * 10_000
    async with opened(app) as slow, opened(app) as other:
        for stream in (slow, other):
            await stream.frame()
        slow.reads.clear()
        for number in range(600):
            await say(config, "kept:1", [number, text])
            assert (await other.frame())["data"][0] == number
        slow.reads.set()
        frames = []
        while not frames or "gap" not in frames[-1]:
            frames.append(await slow.frame())
        assert frames[-1] == {"gap": ["kept:1"], "reason": "overflow"}
        got = [frame["data"][0] for frame in frames[:-1]]
        assert got == list(range(len(got)))
        assert len(got) < 256
        await say(config, "kept:1", [600, text])
        assert (await slow.frame())["data"][0] == 600
    # The position is behind the gap: what was dropped does not come again.
    async with opened(app, last_id=slow.parser.last_id) as stream:
        assert await stream.frame() == {"ready": {}}
        await say(config, "kept:1", "next")
        assert data_of([await stream.frame()]) == ["next"]


async def test_a_drain_asks_the_clients_to_come_back(memory: Any, serve: Serve) -> None:
    app = serve(events_view(["kept:1", "news"], config=memory))
    async with opened(app) as stream, opened(app) as stuck:
        for one in (stream, stuck):
            await one.frame()
        stuck.reads.clear()
        await say(memory, "kept:1", 1)
        await stuck.blocked.wait()
        assert await hub_of(memory).drain(0.5) == 0
        one, bye = await stream.end()
        assert (one["data"], bye) == (1, {"bye": {"code": 1012, "again": True, "after": [0, 5]}})
        assert 100 <= (stream.parser.retry or 0) <= 5000


async def test_during_a_drain_new_clients_are_asked_to_come_back(memory: Any, serve: Serve) -> None:
    hub_of(memory).connections.draining = True
    async with opened(serve(events_view("news", config=memory))) as stream:
        (bye,) = await stream.end()
        assert bye["bye"]["code"] == 1012


async def test_a_broker_that_is_down_ends_the_stream_with_a_delay(
    fresh_valkey_server: Any, serve: Serve
) -> None:
    config = f"{fresh_valkey_server.url}?subscribe_timeout_seconds=0.2"
    fresh_valkey_server.stop()
    async with opened(serve(events_view("news", config=config))) as stream:
        assert stream.status == 200  # A browser would never try again after another status.
        (bye,) = await stream.end()
        assert bye == {"bye": {"code": 1013, "again": True, "after": [5, 10]}}
        assert 5000 <= (stream.parser.retry or 0) <= 10_000
    assert hub_of(config).stats()["event_streams"] == 0


async def test_a_lost_link_to_the_broker_costs_no_message(valkey_server: Any, serve: Serve) -> None:
    prefix = f"events{next(_names)}"
    async with FaultProxy("127.0.0.1", valkey_server.port) as proxy:
        through = {"url": f"redis://127.0.0.1:{proxy.port}?prefix={prefix}", "history": RULES}
        beside = {"url": f"{valkey_server.url}?prefix={prefix}", "history": RULES}
        app = serve(events_view(["kept:1", "news"], config=through))
        async with opened(app) as stream:
            await stream.frame()
            for number in range(3):
                proxy.refuse()
                proxy.drop()
                await say(beside, "kept:1", 2 * number)
                await say(beside, "news", "lost")
                proxy.accept()
                frames = []
                while {"kept:1", "news"} - {name for one in frames for name in names_in(one)}:
                    frames.append(await stream.frame())
                await say(beside, "kept:1", 2 * number + 1)
                frames.append(await stream.frame())
                assert data_of(frames) == [2 * number, 2 * number + 1]
                assert [one["gap"] for one in frames if "gap" in one] == [["news"]]


def names_in(frame: Any) -> list[str]:
    return frame["gap"] if "gap" in frame else [frame["channel"]]


# The project around it


async def test_the_view_works_with_the_middleware_and_settings_of_a_site(
    memory: Any, serve: Serve
) -> None:
    middleware = [
        "django.middleware.gzip.GZipMiddleware",
        "django.middleware.security.SecurityMiddleware",
        *WITH_LOGIN,
        "django.middleware.common.CommonMiddleware",
        "django.middleware.csrf.CsrfViewMiddleware",
        "django.middleware.http.ConditionalGetMiddleware",
        "support.event_middleware.OnlySync",
    ]
    from django.db import connections

    connections["default"].settings_dict["ATOMIC_REQUESTS"] = True
    try:
        app = serve(events_view("news", config=memory), MIDDLEWARE=middleware)
        async with opened(app, headers={"accept-encoding": "gzip"}) as stream:
            assert stream.headers["content-encoding"] == "identity"
            await stream.frame()
            await say(memory, "news", 1)
            assert data_of([await stream.frame()]) == [1]
    finally:
        connections["default"].settings_dict["ATOMIC_REQUESTS"] = False


async def test_a_test_of_an_application_reads_a_stream(memory: Any, serve: Serve) -> None:
    from django.test import AsyncClient

    serve(events_view("kept:1", replay=1, config=memory))
    await say(memory, "kept:1", "last")
    response = await AsyncClient().get("/")
    text = b""
    async for chunk in response.streaming_content:
        text += chunk
        if b'"last"' in text:
            break
    assert text.index(b"ready") < text.index(b'"last"')
    before = hub_of(memory).stats()["event_streams"]
    response.close()
    for _ in range(2000):
        if not hub_of(memory).stats()["event_streams"]:
            break
        await asyncio.sleep(0.001)
    assert (before, hub_of(memory).stats()["event_streams"]) == (1, 0)


def test_under_wsgi_the_answer_names_asgi(django_project: None) -> None:
    from django.test import Client

    with override_settings(ROOT_URLCONF=_Urls(path("", events_view("news"))), MIDDLEWARE=[]):
        answer = Client().get("/")
    assert answer.status_code == 501
    assert b"ASGI" in answer.content


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({}, ConfigurationError),
        ({"channels": "a\nb"}, ChannelError),
        ({"channels": [f"c{n}" for n in range(65)]}, ConfigurationError),
        ({"channels": 1.5}, ChannelError),
        ({"channels": "a", "replay": -1}, ConfigurationError),
        ({"channels": "a", "replay": True}, ConfigurationError),
        ({"channels": "a", "keepalive_seconds": 0}, ConfigurationError),
        ({"channels": "a", "retry_seconds": float("nan")}, ConfigurationError),
        ({"channels": "a", "config": 5}, ConfigurationError),
    ],
    ids=str,
)
def test_a_wrong_argument_is_refused(
    django_project: None, arguments: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        events_view(**arguments)
