"""What the counter shows, live."""

from django_sockets.sockets import BaseSocketServer

from .models import Counter

CHANNEL = "count"


class CounterSocket(BaseSocketServer):
    """Sends `{"value": ...}` at once, and again whenever it changes."""

    def connect(self):
        # In this order: changes from here on follow the value, however long its query takes.
        self.subscribe(CHANNEL)
        self.send_value()

    def gap(self, channels, reason):
        self.send_value()

    def send_value(self):
        counter = Counter.objects.filter(name="demo").first()
        self.send({"value": counter.value if counter else 0})
