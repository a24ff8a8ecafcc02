"""channels: a consumer in one group."""

import channels_layer  # noqa: F401 (configures Django)
from channels.generic.websocket import AsyncWebsocketConsumer
from common import GREETS


class Consumer(AsyncWebsocketConsumer):
    async def connect(self):
        self.room = self.scope["path"].strip("/")
        await self.channel_layer.group_add(self.room, self.channel_name)
        await self.accept()
        if GREETS:
            await self.send(text_data='"joined"')

    async def disconnect(self, code):
        await self.channel_layer.group_discard(self.room, self.channel_name)

    async def chat_message(self, event):
        await self.send(text_data=event["text"])


app = Consumer.as_asgi()
