"""The ASGI application, which runs in a separate process."""

from django.core.asgi import get_asgi_application

from django_sockets.middleware import secure
from django_sockets.sockets import BaseSocketServer

pages = get_asgi_application()


class Desk(BaseSocketServer):
    async def connect(self):
        await self.async_send(self.scope["user"].username)

    async def receive(self, data):
        await self.async_send(data)


sockets = secure(Desk.as_asgi, require_user=True)


async def application(scope, receive, send):
    await (pages if scope["type"] == "http" else sockets)(scope, receive, send)
