from django.core.asgi import get_asgi_application
from django.db import transaction

from django_sockets.sockets import BaseSocketServer
from notes.models import Note

ended = []


def texts():
    return list(Note.objects.order_by("id").values_list("text", flat=True))


class Plain(BaseSocketServer):
    """Reads and writes in `def` handlers."""

    def authorize(self):
        return Note.objects.filter(text="banned").count() == 0

    def connect(self):
        self.send(texts())

    def receive(self, data):
        with transaction.atomic():
            Note.objects.create(text=data)
        self.broadcast("notes", data)
        self.send(texts())

    def disconnect(self, code):
        ended.append(Note.objects.count())


class Coroutines(BaseSocketServer):
    """The same with Django's coroutines."""

    async def connect(self):
        await self.async_send([note.text async for note in Note.objects.order_by("id")])

    async def receive(self, data):
        await Note.objects.acreate(text=data)
        await self.async_send([note.text async for note in Note.objects.order_by("id")])


pages = get_asgi_application()


async def application(scope, receive, send):
    await (pages if scope["type"] == "http" else Plain.as_asgi)(scope, receive, send)
