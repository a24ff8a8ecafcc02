"""Each kind of test case of Django. test_testkit_database.py runs them in separate processes."""

import json
import threading
import urllib.request

from asgiref.sync import async_to_sync
from django.db import connection, transaction
from django.test import TestCase, TransactionTestCase
from websockets.sync.client import connect

from django_sockets.testing import (
    HandshakeRefused,
    LiveSocketServer,
    SocketClient,
    SyncSocketClient,
    override_broker,
)
from django_sockets.testing.cases import LiveSocketServerTestCase, SocketTestCase
from notes.models import Note
from notes.sockets import Coroutines, Plain, application, ended, texts

KINDS = (Plain, Coroutines)


async def drive(kind):
    with override_broker():
        async with SocketClient(kind.as_asgi) as client:
            assert await client.receive_json() == ["from the test"]
            await client.send_json("from the socket")
            assert await client.receive_json() == ["from the test", "from the socket"]


def drive_plainly(kind):
    with override_broker(), SyncSocketClient(kind.as_asgi) as client:
        assert client.receive_json() == ["from the test"]
        client.send_json("from the socket")
        assert client.receive_json() == ["from the test", "from the socket"]
        assert texts() == ["from the test", "from the socket"]


class Ways:
    """The test sees what a socket has written, and it is rolled back after the test."""

    def setUp(self):
        assert texts() == [], "the test before was not rolled back"
        Note.objects.create(text="from the test")

    def each_kind(self, drive):
        for kind in KINDS:
            drive(kind)
            assert texts() == ["from the test", "from the socket"]
            Note.objects.filter(text="from the socket").delete()

    def test_a_plain_client(self):
        self.each_kind(drive_plainly)

    def test_async_to_sync(self):
        self.each_kind(async_to_sync(drive))

    async def test_a_coroutine_test(self):
        for kind in KINDS:
            await drive(kind)
            assert await Note.objects.acount() == 2
            await Note.objects.filter(text="from the socket").adelete()

    def test_afterwards_the_connection_is_still_usable_and_only_ours(self):
        drive_plainly(Plain)
        assert ended.pop() == 2
        assert texts() == ["from the test", "from the socket"]
        assert connection.execute_wrappers == [], connection.execute_wrappers
        assert connection._thread_sharing_count == 0

    def test_refused(self):
        Note.objects.create(text="banned")
        with override_broker(), self.assertRaises(HandshakeRefused):
            SyncSocketClient(Plain.as_asgi).connect()

    def test_handlers_of_many_sockets_have_their_turns(self):
        with override_broker():
            clients = [SyncSocketClient(Plain.as_asgi) for _ in range(8)]
            for client in clients:
                client.connect()
            for number in range(10):
                for client in clients:
                    client.send_json(str(number))
            for client in clients:
                for _ in range(11):
                    client.receive_json()
            for client in clients:
                client.close()
        assert Note.objects.count() == 1 + 8 * 10

    def test_a_live_server(self):
        with override_broker(), LiveSocketServer(application) as server:
            with connect(server.ws_url, proxy=None) as browser:
                assert json.loads(browser.recv(timeout=5)) == ["from the test"]
                browser.send('"from the socket"')
                assert json.loads(browser.recv(timeout=5)) == ["from the test", "from the socket"]
            with urllib.request.urlopen(server.url) as page:
                assert page.read() == b"2"
            with urllib.request.urlopen(server.url + "/static/notes.css") as page:
                assert page.read() == b"body { color: teal }\n"


class InTestCase(Ways, TestCase):
    def test_in_a_block_of_the_test(self):
        with transaction.atomic():
            drive_plainly(Plain)
            transaction.set_rollback(True)
        assert texts() == ["from the test"]


class InTransactionTestCase(Ways, TransactionTestCase):
    def test_on_commit_runs_when_a_handler_commits(self):
        called = threading.Event()

        class Saves(Plain):
            def receive(self, data):
                with transaction.atomic():
                    transaction.on_commit(called.set)

        with override_broker(), SyncSocketClient(Saves.as_asgi) as client:
            client.send_json(1)
            assert called.wait(5)


class Short(SocketTestCase):
    def test_it(self):
        client = self.socket(Plain.as_asgi)
        assert client.receive_json() == []
        client.send_json("hello")
        assert client.receive_json() == ["hello"]
        self.broadcasts.assert_broadcast("notes", "hello")
        assert texts() == ["hello"]

    def test_a_socket_has_the_cookies_of_the_test_client(self):
        def cookies(**options):
            headers = self.socket(Plain.as_asgi, **options).scope["headers"]
            return [value for name, value in headers if name == b"cookie"]

        assert cookies() == []
        self.client.cookies["sessionid"] = "a"
        self.client.cookies["theme"] = "b c"
        assert cookies() == [b'sessionid=a; theme="b c"']
        assert cookies(headers={"Cookie": "own=1"}) == [b"own=1"]

    async def test_coroutines_get_the_broker_too(self):
        async with SocketClient(Plain.as_asgi) as client:
            await client.send_json("hello")
            assert await client.receive_json() == []
            assert await client.receive_json() == ["hello"]
        assert self.broadcasts == [("notes", "hello")]


class Live(LiveSocketServerTestCase):
    application = staticmethod(application)

    def test_it(self):
        Note.objects.create(text="from the test")
        with connect(self.live_server.ws_url, proxy=None) as browser:
            assert json.loads(browser.recv(timeout=5)) == ["from the test"]
