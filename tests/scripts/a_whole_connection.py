# A whole connection played by hand: the queue belongs to the main thread, the listeners do not.
import asyncio
import time

from django_sockets.sockets import BaseSocketServer


class Room(BaseSocketServer):
    def connect(self):
        print("enters", self.scope["room"])
        self.subscribe(self.scope["room"])

    def receive(self, data):
        print("says", data)
        self.broadcast(self.scope["room"], data)

    def disconnect(self, code):
        print("leaves", code)


async def send(event):
    print(event)


frames = asyncio.Queue()
room = Room(scope={"room": "kitchen"}, receive=frames.get, send=send)
room.start_listeners()
for frame in (
    {"type": "websocket.connect"},
    {"type": "websocket.receive", "text": '{"say": "hello"}'},
    {"type": "websocket.receive", "bytes": b'"and bye"'},
    {"type": "websocket.disconnect", "code": 1000},
    {"type": "websocket.receive", "text": '"nobody hears this"'},
):
    # No event tells the main thread: the pause is what the next print has to be within.
    time.sleep(0.1)
    frames.put_nowait(frame)
time.sleep(0.1)

# => {'type': 'websocket.accept'}
# => enters kitchen
# => says {'say': 'hello'}
# => {'type': 'websocket.send', 'text': '{"say": "hello"}'}
# => says and bye
# => {'type': 'websocket.send', 'text': '"and bye"'}
# => leaves 1000
