"""The tests of the board. `python manage.py test` runs them; they need no server and no broker."""

import uuid

from django.conf import settings
from django.contrib.auth.models import User
from project.asgi import application

from django_sockets.signed_channels import channel_token, position
from django_sockets.testing.cases import SocketTestCase

from .channels import STAFF, channel_of_page
from .models import Order


class BoardTests(SocketTestCase):
    broker = {**settings.DJANGO_SOCKETS_CONFIG, "url": "memory://"}  # noqa: RUF012

    def setUp(self):
        self.alice = User.objects.create_user("alice", is_staff=True)
        self.bob = User.objects.create_user("bob")
        self.carol = User.objects.create_user("carol")

    def page(self, user):
        """The socket of a page, as far as `ready`."""
        self.client.force_login(user)
        socket = self.socket(application, "/ws/", subprotocols=["django-sockets.v1"])
        while "ready" not in socket.receive_json():
            pass
        return socket

    def request(self, socket, kind, **data):
        with self.captureOnCommitCallbacks(execute=True):  # A TestCase does not commit by itself.
            socket.send_json({"id": 1, "message": {"type": kind, **data}})
            answer = socket.receive_json()
        return answer.get("ok") or answer["error"]["code"]

    def subscribe(self, socket, channel, user, since):
        token = channel_token(channel, user=user, since=since)
        socket.send_json({"id": 2, "subscribe": [{"token": token}]})
        return socket.receive_json()["ok"]["channels"][0]

    def test_a_change_reaches_the_staff_and_the_customer_and_nobody_else(self):
        page = self.page(self.bob)
        order = self.request(page, "place", reference=str(uuid.uuid4()), item="Rye bread")
        self.assertEqual((order["customer"], order["status"]), ("bob", "new"))
        self.assertEqual(
            {channel for channel, _ in self.broadcasts}, {STAFF, channel_of_page(self.bob)}
        )

    def test_a_page_gets_what_has_changed_since_it_was_rendered(self):
        channel = channel_of_page(self.bob)
        since = position([channel])
        reference = str(uuid.uuid4())
        self.request(self.page(self.bob), "place", reference=reference, item="Pretzel")
        late = self.page(self.bob)
        self.assertTrue(self.subscribe(late, channel, self.bob, since)["recovered"])
        self.assertEqual(late.receive_json()["data"]["item"], "Pretzel")

    def test_an_order_that_is_sent_twice_is_made_once(self):
        page, reference = self.page(self.bob), str(uuid.uuid4())
        for _ in range(2):
            self.request(page, "place", reference=reference, item="Apple pie")
        self.assertEqual(Order.objects.count(), 1)

    def test_the_staff_takes_the_steps_and_the_customer_cannot(self):
        order = Order.objects.create(customer=self.bob, item="Pretzel")
        change = {"id": order.pk, "version": 1}
        self.assertEqual(self.request(self.page(self.bob), "advance", **change), "forbidden")
        staff = self.page(self.alice)
        self.assertEqual(self.request(staff, "advance", **change)["status"], "baking")
        self.assertEqual(self.request(staff, "advance", **change), "conflict")
        late = {"id": order.pk, "version": 2}
        self.assertEqual(self.request(self.page(self.bob), "cancel", **late), "too_late")

    def test_the_staff_sees_who_looks_at_the_board(self):
        dora = User.objects.create_user("dora", is_staff=True)
        page = self.page(self.alice)
        token = channel_token(STAFF, user=self.alice, presence=True)
        page.send_json({"id": 1, "subscribe": [{"token": token, "presence": True}]})
        answer = page.receive_json()["ok"]["channels"][0]
        self.assertEqual(answer["presence"], {str(self.alice.pk): [{"name": "alice"}]})
        self.page(dora)
        joined = page.receive_json()["presence"]["joined"]
        self.assertEqual(joined, {str(dora.pk): [{"name": "dora"}]})

    def test_a_token_is_of_no_use_to_another_user(self):
        page = self.page(self.carol)
        answer = self.subscribe(page, channel_of_page(self.bob), self.bob, None)
        self.assertEqual(answer["error"]["code"], "token_foreign")
        page.send_json({"id": 3, "subscribe": [{"channel": STAFF}]})
        answer = page.receive_json()["ok"]["channels"][0]
        self.assertEqual(answer["error"]["code"], "forbidden")

    def test_a_logout_closes_the_page(self):
        page = self.page(self.bob)
        self.client.logout()
        self.assertIn("bye", page.receive_json())
        self.assertEqual(page.receive_close(), 4401)

    def test_the_page_shows_the_orders_of_its_user(self):
        Order.objects.create(customer=self.bob, item="Rye bread")
        for user, shown in ((self.alice, 1), (self.bob, 1), (self.carol, 0)):
            self.client.force_login(user)
            self.assertEqual(len(self.client.get("/state/").json()["orders"]), shown)
            self.assertContains(self.client.get("/"), "data-token=")
        self.client.logout()
        self.assertEqual(self.client.get("/state/").status_code, 401)
        self.assertEqual(self.client.get("/token/").status_code, 401)

    def test_the_staff_sees_the_live_page_and_a_customer_does_not(self):
        for user, status in ((self.alice, 200), (self.bob, 302)):
            self.client.force_login(user)
            self.assertEqual(self.client.get("/admin/sockets/").status_code, status)
