"""The socket class of the shop. It echoes, joins a room, and ends in each possible way."""

from django_sockets.sockets import BaseSocketServer


class Counter(BaseSocketServer):
    def connect(self):
        self.subscribe(["orders", f"room:{self.scope['url_route']['kwargs']['room']}"])
        self.send("ready")

    def receive(self, data):
        match data:
            case {"say": text}:
                self.broadcast(f"room:{self.scope['url_route']['kwargs']['room']}", text)
            case {"close": int(code)}:
                self.close(code)
            case _:
                self.send(data)

    def disconnect(self, code):
        print(f"disconnect {code}", flush=True)
