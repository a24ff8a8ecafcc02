"""What the counter shows, live."""

from django_sockets.sockets import BaseSocketServer

from .models import Counter

CHANNEL = "count"


class CounterSocket(BaseSocketServer):
    """Sends `{"value": ...}` at once, and again whenever it changes."""

    def connect(self):
        self.subscribe(CHANNEL)  # First, so that no change falls between the two.
        self.send_value()

    def gap(self, channels, reason):
        self.send_value()

    def send_value(self):
        counter = Counter.objects.filter(name="demo").first()
        self.send({"value": counter.value if counter else 0})
