"""The socket class that sends the value of the counter."""

from django_sockets.sockets import BaseSocketServer

from .models import Counter

CHANNEL = "count"


class CounterSocket(BaseSocketServer):
    """Sends `{"value": ...}` at once, and again after each change."""

    def connect(self):
        # The order matters: changes after the subscribe are sent after the value.
        self.subscribe(CHANNEL)
        self.send_value()

    def gap(self, channels, reason):
        self.send_value()

    def send_value(self):
        counter = Counter.objects.filter(name="demo").first()
        self.send({"value": counter.value if counter else 0})
