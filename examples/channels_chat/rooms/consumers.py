"""The websocket of a room: each member gets what the others say."""

from channels.generic.websocket import AsyncJsonWebsocketConsumer

MAX_TEXT = 500


class RoomConsumer(AsyncJsonWebsocketConsumer):
    async def connect(self):
        self.group = f"room.{self.scope['url_route']['kwargs']['name']}"
        await self.channel_layer.group_add(self.group, self.channel_name)
        await self.accept()

    async def disconnect(self, code):
        await self.channel_layer.group_discard(self.group, self.channel_name)

    async def receive_json(self, content):
        text = str(content.get("text", ""))[:MAX_TEXT]
        if text:
            await self.channel_layer.group_send(self.group, {"type": "room.said", "text": text})

    async def room_said(self, event):
        """Another member, or a view, has said something."""
        await self.send_json({"text": event["text"]})

    async def broker_gap(self, event):
        """Messages may be missing: a page with a history would fetch it again."""
        await self.send_json({"gap": event["reason"]})
