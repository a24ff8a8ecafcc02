"""`broadcast_on_commit` sends only committed data, and a broken broker breaks no request.

Other publishers are tested here, too: WSGI views, forking workers, commands, `async_to_sync`.
"""

from __future__ import annotations

import json
import subprocess

import pytest

from django_sockets.testing.ports import free_port
from django_sockets.testing.servers import CacheServer
from support.shop_process import MANAGE, environment, run, script

LISTEN = """
import logging, os, threading
from django.db import transaction
from django_sockets.broadcaster import Broadcaster
from django_sockets.integration import broadcast_on_commit
from django_sockets.runtime import background_loop
import asyncio

class Ear:
    "Hears a channel on the library's background loop; `heard` waits for what must come."
    def __init__(self, channel):
        self.broadcaster = Broadcaster()
        self.run(self.broadcaster.async_subscribe(channel))
    def run(self, work):
        return asyncio.run_coroutine_threadsafe(work, background_loop()).result(10)
    def hear(self):
        return self.run(self.broadcaster.async_receive_broadcast())[1]
    def all(self):
        "Everything until a last word of ours."
        broadcast_on_commit("orders", "the end")
        got = []
        while (data := self.hear()) != "the end":
            got.append(data)
        return got

ear = Ear("orders")
"""


def heard(code: str, **settings: object) -> list[object]:
    printed = script(LISTEN + code + "\nimport json\nprint(json.dumps(ear.all()))", settings)
    result: list[object] = json.loads(printed.splitlines()[-1])
    return result


def test_nothing_is_heard_before_the_commit_and_everything_after_in_order() -> None:
    code = """
Broadcaster().broadcast("orders", "before")
with transaction.atomic():
    for number in range(3):
        broadcast_on_commit("orders", number)
    Broadcaster().broadcast("orders", "inside")
assert Broadcaster().broadcast("orders", "after") is None
"""
    assert heard(code) == ["before", "inside", 0, 1, 2, "after"]


def test_a_rollback_also_of_a_savepoint_drops_it() -> None:
    code = """
try:
    with transaction.atomic():
        broadcast_on_commit("orders", "lost")
        raise ValueError
except ValueError:
    pass
with transaction.atomic():
    broadcast_on_commit("orders", "kept")
    try:
        with transaction.atomic():
            broadcast_on_commit("orders", "lost, too")
            raise ValueError
    except ValueError:
        pass
broadcast_on_commit("orders", "at once")
"""
    assert heard(code) == ["kept", "at once"]


def test_the_data_is_that_of_the_call() -> None:
    code = """
with transaction.atomic():
    data = {"price": 1}
    broadcast_on_commit(["orders", "audit"], data)
    data["price"] = 2
"""
    assert heard(code) == [{"price": 1}]


def test_what_is_wrong_with_it_is_raised_at_the_call_and_rolls_back() -> None:
    code = """
from django_sockets import ChannelError, EncodeError, PayloadTooLarge
from shop.models import Order
for channel, data, error in [
    ("orders", object, EncodeError),
    (None, 1, ChannelError),
    ("", 1, ChannelError),
    ("orders", "x" * 1001, PayloadTooLarge),
]:
    try:
        with transaction.atomic():
            Order.objects.create(item="wrong")
            broadcast_on_commit(channel, data)
    except error:
        continue
    raise SystemExit(f"no {error.__name__}")
assert Order.objects.count() == 0
"""
    assert heard(code, DJANGO_SOCKETS_CONFIG="memory://?max_payload_bytes=1000") == []


def test_a_broker_that_is_down_is_logged_and_the_commit_stands() -> None:
    url = f"redis://127.0.0.1:{free_port()}?connect_timeout_seconds=1"
    printed = script(
        """
        import logging
        from django.db import transaction
        from django_sockets.integration import broadcast_on_commit
        from shop.models import Order

        class Heard(logging.Handler):
            def emit(self, record):
                print(record.name, record.levelname, record.getMessage())

        logging.getLogger("django_sockets").addHandler(Heard())
        after = []
        with transaction.atomic():
            Order.objects.create(item="kept")
            transaction.on_commit(lambda: after.append("the next one runs"))
        broadcast_on_commit("orders", "outside of a transaction")
        print(Order.objects.count(), after)
        """,
        {"DJANGO_SOCKETS_CONFIG": url},
    )
    lines = printed.splitlines()
    said = "django_sockets ERROR a broadcast after a commit was not sent: "
    # Once, although two were lost: an outage would fill the log.
    assert len([line for line in lines if line.startswith(said)]) == 1
    assert lines[-1] == "1 ['the next one runs']"


def test_a_signal_and_a_wsgi_view_tell_what_was_saved() -> None:
    code = """
from django.test import Client
client = Client()
assert client.get("/order/tea/").content == b"ordered"
assert client.get("/order/nothing/").content == b"ordered"
assert client.get("/order/milk/").content == b"ordered"
threads = [thread.name for thread in threading.enumerate()]
assert threads.count("django_sockets loop") == 1, threads
"""
    assert heard(code) == [{"ordered": "tea"}, {"ordered": "milk"}]


def test_it_works_under_async_to_sync_and_on_threads_of_sync_to_async() -> None:
    code = """
from asgiref.sync import async_to_sync, sync_to_async

def order():
    with transaction.atomic():
        broadcast_on_commit("orders", "from a view")

async def view():
    await sync_to_async(order, thread_sensitive=True)()
    await Broadcaster().async_broadcast("orders", "from a coroutine")

async_to_sync(view)()
asyncio.run(view())
"""
    assert heard(code) == ["from a view", "from a coroutine"] * 2


@pytest.fixture
def tail(valkey_server: CacheServer) -> subprocess.Popen[str]:
    command = [*MANAGE, "sockets", "tail", "--json", "orders"]
    process = subprocess.Popen(
        command,
        env=environment({"DJANGO_SOCKETS_CONFIG": valkey_server.url}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("subscribed to")
        yield process
        process.kill()


def words(tail: subprocess.Popen[str], count: int) -> list[object]:
    assert tail.stdout is not None
    return [json.loads(tail.stdout.readline())["data"] for _ in range(count)]


def test_workers_that_fork_after_the_first_broadcast_go_on(
    tail: subprocess.Popen[str], valkey_server: CacheServer
) -> None:
    code = """
        import os, sys
        from django.db import connections, transaction
        from django_sockets.broadcaster import Broadcaster
        from django_sockets.integration import broadcast_on_commit

        broadcaster = Broadcaster()
        broadcaster.broadcast("orders", "parent")  # The connection exists before the fork.
        for number in range(3):
            pid = os.fork()
            if not pid:
                status = 1
                try:
                    connections.close_all()
                    broadcaster.broadcast("orders", f"worker {number}, kept broadcaster")
                    with transaction.atomic():
                        broadcast_on_commit("orders", f"worker {number}, commit")
                    status = 0
                finally:
                    os._exit(status)
            assert os.waitpid(pid, 0)[1] == 0
        broadcaster.broadcast("orders", "parent again")
    """
    script(code, {"DJANGO_SOCKETS_CONFIG": valkey_server.url})
    workers = [f"worker {n}, {what}" for n in range(3) for what in ("kept broadcaster", "commit")]
    assert words(tail, 8) == ["parent", *workers, "parent again"]


def test_a_management_command_is_heard_and_ends(
    tail: subprocess.Popen[str], valkey_server: CacheServer
) -> None:
    settings = {"DJANGO_SOCKETS_CONFIG": valkey_server.url}
    ended = run([*MANAGE, "order", "bread"], settings)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert words(tail, 1) == [{"ordered": "bread"}]
