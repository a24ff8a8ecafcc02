"""Open sockets end with their login, also if a page stays open."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable
from socket import create_server
from typing import Any

import pytest

from django_sockets.middleware import SessionAuthMiddleware, watch
from django_sockets.sockets import BaseSocketServer
from django_sockets.testing.client import SocketClient, SocketClosed

NEVER = 3600.0
QUICK = 0.25
ENGINES = ["db", "cached_db", "cache", "file"]


class Desk(BaseSocketServer):
    config = "memory://watch"

    async def connect(self) -> None:
        await self.async_send(self.scope["user"].username)

    async def receive(self, data: Any) -> None:
        await self.async_send(data)


def desk(key: str, seconds: float, **options: Any) -> SocketClient:
    app = SessionAuthMiddleware(Desk.as_asgi, session_check_seconds=seconds, **options)
    return SocketClient(app, headers={"cookie": f"sessionid={key}"})


async def closed(socket: SocketClient) -> int:
    """The close code, without the check of logins that `receive_close` triggers."""
    try:
        while True:
            await socket.receive()
    except SocketClosed as caught:
        return caught.code


def watchers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "django_sockets watch"]


async def until(true: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 5
    while not true():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


def everybody() -> Any:
    from django.contrib.auth import get_user_model

    return get_user_model().objects.all()


def new_password(user: Any) -> None:
    user.set_password("second")
    user.save()


def deactivate(user: Any) -> None:
    user.is_active = False
    user.save()


@pytest.mark.parametrize("act", ["logout", "password", "deactivated", "deleted"])
async def test_what_django_signals_closes_at_once(act: str, members: Any) -> None:
    ann, bob = await members.do(members.create, "ann"), await members.do(members.create, "bob")
    key, other = await members.do(members.login, ann), await members.do(members.login, bob)
    acts = {
        "logout": lambda: members.logout(key),
        "password": lambda: new_password(ann),
        "deactivated": lambda: deactivate(ann),
        "deleted": ann.delete,
    }
    # No check runs by itself here.
    async with desk(key, NEVER) as one, desk(key, NEVER) as two, desk(other, NEVER) as others:
        await members.do(acts[act])
        assert await closed(one) == 4401
        assert await closed(two) == 4401
        assert await others.receive_json() == "bob"
        await others.send_json("still here")
        assert await others.receive_json() == "still here"


@pytest.mark.parametrize("engine", ENGINES)
async def test_a_logout_closes_with_every_engine(
    engine: str, members: Any, settings_of: Any
) -> None:
    settings_of(SESSION_ENGINE=f"django.contrib.sessions.backends.{engine}")
    key = await members.do(members.login, await members.do(members.create))
    async with desk(key, NEVER) as socket:
        await members.do(members.logout, key)
        assert await closed(socket) == 4401


async def test_what_was_rolled_back_closes_nothing(members: Any) -> None:
    from django.db import transaction

    ann = await members.do(members.create)
    key = await members.do(members.login, ann)

    def act() -> None:
        with transaction.atomic():
            deactivate(ann)
            transaction.set_rollback(True)

    async with desk(key, NEVER) as socket:
        assert await socket.receive_json() == "ann"
        await members.do(act)
        assert await socket.receive_nothing()


async def test_saving_a_user_otherwise_closes_nothing(members: Any) -> None:
    ann = await members.do(members.create)
    key = await members.do(members.login, ann)
    async with desk(key, NEVER) as socket:
        assert await socket.receive_json() == "ann"
        ann.first_name = "Ann"
        await members.do(ann.save)
        await members.do(members.login, ann)  # Elsewhere, too: saves last_login.
        assert await socket.receive_nothing()


@pytest.mark.parametrize("act", ["password", "inactive", "deleted", "expired", "removed"])
async def test_what_has_no_signal_is_found(act: str, members: Any) -> None:
    from django.contrib.sessions.models import Session

    ann, bob = await members.do(members.create, "ann"), await members.do(members.create, "bob")
    key, other = await members.do(members.login, ann), await members.do(members.login, bob)
    anns = everybody().filter(pk=ann.pk)
    session = Session.objects.filter(pk=key)
    acts: dict[str, Callable[[], Any]] = {
        "password": lambda: anns.update(password="md5$x$y"),
        "inactive": lambda: anns.update(is_active=False),
        "deleted": lambda: anns._raw_delete("default"),
        "expired": lambda: session.update(expire_date="2001-01-01T00:00:00Z"),
        "removed": session.delete,
    }
    async with desk(key, QUICK) as socket, desk(other, QUICK) as others:
        assert await others.receive_json() == "bob"
        begun = time.monotonic()
        await members.do(acts[act])
        assert await closed(socket) == 4401
        assert time.monotonic() - begun < 5
        await others.send_json("still here")
        assert await others.receive_json() == "still here"


@pytest.mark.parametrize("engine", ENGINES)
async def test_a_session_that_vanished_is_found_with_every_engine(
    engine: str, members: Any, settings_of: Any
) -> None:
    from importlib import import_module

    settings_of(SESSION_ENGINE=f"django.contrib.sessions.backends.{engine}")
    store = import_module(f"django.contrib.sessions.backends.{engine}").SessionStore
    key = await members.do(members.login, await members.do(members.create))
    async with desk(key, QUICK) as socket:
        assert await socket.receive_json() == "ann"
        await asyncio.sleep(2 * QUICK)
        assert await socket.receive_nothing()
        await members.do(lambda: store(key).delete())
        assert await closed(socket) == 4401


async def test_signed_cookies_are_watched_for_their_user(members: Any, settings_of: Any) -> None:
    settings_of(SESSION_ENGINE="django.contrib.sessions.backends.signed_cookies")
    key = await members.do(members.login, await members.do(members.create))
    async with desk(key, QUICK) as socket:
        assert await socket.receive_json() == "ann"
        await asyncio.sleep(2 * QUICK)
        assert await socket.receive_nothing()
        await members.do(everybody().update, is_active=False)
        assert await closed(socket) == 4401


async def test_a_look_at_many_sockets_is_two_queries(members: Any) -> None:
    keys = []
    for name in ("ann", "bob", "cyd"):
        user = await members.do(members.create, name)
        keys += [await members.do(members.login, user) for _ in range(4)]
    clients = [desk(key, NEVER) for key in keys * 3]
    for client in clients:
        await client.connect()
    members.queries.clear()
    watch.check_soon()
    await until(lambda: len(members.queries) >= 2)
    await asyncio.sleep(0.1)
    assert len(members.queries) == 2, members.queries
    assert all(query.startswith("django_sockets watch: SELECT") for query in members.queries)
    for client in clients:
        await client.close()


async def test_nothing_runs_while_nobody_is_watched(members: Any) -> None:
    key = await members.do(members.login, await members.do(members.create))
    await until(lambda: not watchers())
    async with desk(key, NEVER), desk(key, NEVER):
        assert len(watchers()) == 1
    await until(lambda: not watchers())
    async with desk(key, QUICK) as socket:
        await members.do(everybody().update, is_active=False)
        assert await closed(socket) == 4401
    await until(lambda: not watchers())


async def test_an_outage_closes_no_socket_until_it_lasts_too_long(
    members: Any, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    from django.db import OperationalError
    from django.db.models.sql.compiler import SQLCompiler

    ann = await members.do(members.create)
    key, other = await members.do(members.login, ann), await members.do(members.login, ann)
    works, asked = SQLCompiler.execute_sql, 0

    def down(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal asked
        asked += 1
        raise OperationalError("the database is down")

    async with desk(key, QUICK) as patient, desk(other, QUICK, outage_seconds=1) as hasty:
        assert await patient.receive_json() == "ann"
        monkeypatch.setattr(SQLCompiler, "execute_sql", down)
        await until(lambda: asked >= 4)
        assert await patient.receive_nothing()
        assert await closed(hasty) == 4503
        assert len([r for r in caplog.records if "could not be checked" in r.message]) == 1
        monkeypatch.setattr(SQLCompiler, "execute_sql", works)
        await members.do(everybody().update, is_active=False)
        assert await closed(patient) == 4401


async def test_a_broker_that_is_down_holds_up_no_logout(
    members: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = await members.do(members.login, await members.do(members.create))
    with create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("DJANGO_SOCKETS_URL", f"redis://127.0.0.1:{silent.getsockname()[1]}")
        await _logs_out_quickly(members, key)


async def _logs_out_quickly(members: Any, key: str) -> None:
    async with desk(key, NEVER) as socket:
        begun = time.monotonic()
        await members.do(members.logout, key)
        assert time.monotonic() - begun < 1
        assert await closed(socket) == 4401


async def test_orders_that_may_have_been_missed_are_made_up_for(members: Any) -> None:
    from django_sockets.closing import on_missed_orders

    key = await members.do(members.login, await members.do(members.create))
    async with desk(key, NEVER) as socket:
        assert await socket.receive_json() == "ann"
        await members.do(everybody().update, is_active=False)
        assert on_missed_orders.count(watch.check_soon) == 1
        for call in on_missed_orders:
            call()
        assert await closed(socket) == 4401


def test_sockets_of_several_loops_are_watched_by_one_thread(members: Any) -> None:
    from django.db import connections

    key = members.login(members.create())
    connections.close_all()
    everybody_is_there = threading.Barrier(3)
    codes = []

    async def page() -> None:
        async with desk(key, QUICK) as socket:
            await asyncio.to_thread(everybody_is_there.wait, 5)
            codes.append(await closed(socket))

    threads = [threading.Thread(target=lambda: asyncio.run(page())) for _ in range(2)]
    for thread in threads:
        thread.start()
    everybody_is_there.wait(5)
    assert len(watchers()) == 1
    everybody().update(is_active=False)
    connections.close_all()
    for thread in threads:
        thread.join(10)
    assert codes == [4401, 4401]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform has no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_forked_child_watches_afresh() -> None:
    def entry(name: str) -> watch.Watched:
        return watch.Watched(("session", name), name, lambda keys: keys, None, NEVER, NEVER)

    with watch.watching(entry("parent")):
        pid = os.fork()
        if pid == 0:
            ok = not watch.per_process.current.counts
            with watch.watching(entry("child")):
                ok = ok and len(watchers()) == 1
            os._exit(0 if ok else 1)
        assert os.waitpid(pid, 0)[1] == 0
        assert len(watchers()) == 1


def test_a_look_that_is_asked_for_while_nothing_is_open_is_not_made_up_for() -> None:
    looked = watch.Watch()
    looked.check_soon(now=True)
    assert (looked.soon, looked.now) == (False, False)
