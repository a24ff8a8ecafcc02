# A plain script without a running loop: subscribe, broadcast, and the client hears it.
import asyncio
import time

from django_sockets.sockets import BaseSocketServer


async def send(event):
    print("to the client:", event)


config = {"hosts": [{"address": "redis://0.0.0.0:6379"}]}
socket = BaseSocketServer({}, asyncio.Queue().get, send, config)
socket.start_listeners()
socket.subscribe("news")
socket.broadcast("news", {"headline": "it works", "tags": [1, 2]})
time.sleep(0.4)

# => to the client: {'type': 'websocket.send', 'text': '{"headline": "it works", "tags": [1, 2]}'}
