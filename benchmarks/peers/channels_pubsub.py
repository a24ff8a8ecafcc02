"""channels with a channel layer of channels_redis; BENCH_LAYER names the class."""

import os

from django.conf import settings

settings.configure(
    CHANNEL_LAYERS={
        "default": {
            "BACKEND": os.environ.get(
                "BENCH_LAYER", "channels_redis.pubsub.RedisPubSubChannelLayer"
            ),
            "CONFIG": {
                "hosts": [f"redis://127.0.0.1:{os.environ['BENCH_BROKER_PORT']}"],
                "capacity": 100000,
            },
        }
    }
)

from channels.generic.websocket import AsyncWebsocketConsumer  # noqa: E402


class Consumer(AsyncWebsocketConsumer):
    async def connect(self):
        self.room = self.scope["path"].strip("/")
        await self.channel_layer.group_add(self.room, self.channel_name)
        await self.accept()
        await self.send(text_data='"joined"')

    async def chat_message(self, event):
        await self.send(text_data=event["text"])


app = Consumer.as_asgi()
