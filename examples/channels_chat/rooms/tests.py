"""The tests of the application, with the tools of Channels."""

from channels.testing import WebsocketCommunicator
from django.test import SimpleTestCase
from project.asgi import websockets

ORIGIN = (b"origin", b"http://localhost")


class RoomTests(SimpleTestCase):
    async def enter(self, name):
        communicator = WebsocketCommunicator(websockets, f"/ws/room/{name}/", [ORIGIN])
        connected, _ = await communicator.connect(timeout=10)
        self.assertTrue(connected)
        return communicator

    async def test_members_of_a_room_hear_each_other(self):
        ann, bob, other = [await self.enter(name) for name in ("tea", "tea", "coffee")]
        await ann.send_json_to({"text": "Hello"})
        self.assertEqual(await ann.receive_json_from(10), {"text": "Hello"})
        self.assertEqual(await bob.receive_json_from(10), {"text": "Hello"})
        self.assertTrue(await other.receive_nothing(0.05))
        for communicator in (ann, bob, other):
            await communicator.disconnect()

    async def test_who_has_left_hears_nothing(self):
        ann, bob = [await self.enter("tea") for _ in range(2)]
        await bob.disconnect()
        await ann.send_json_to({"text": "Anybody?"})
        self.assertEqual(await ann.receive_json_from(10), {"text": "Anybody?"})
        await ann.disconnect()

    async def test_a_view_speaks_to_the_room(self):
        ann = await self.enter("tea")
        response = await self.async_client.post("/room/tea/announce/")
        self.assertEqual(response.status_code, 204)
        self.assertEqual(await ann.receive_json_from(10), {"text": "The clock strikes."})
        await ann.disconnect()

    async def test_another_site_is_refused(self):
        foreign = [(b"origin", b"http://evil.example")]
        communicator = WebsocketCommunicator(websockets, "/ws/room/tea/", foreign)
        connected, _ = await communicator.connect(timeout=10)
        self.assertFalse(connected)

    def test_the_pages(self):
        self.assertContains(self.client.get("/"), "Which room?")
        self.assertRedirects(self.client.get("/?name=tea"), "/room/tea/")
        self.assertContains(self.client.get("/room/tea/"), "Room tea")
        self.assertEqual(self.client.get("/room/tea/announce/").status_code, 405)
