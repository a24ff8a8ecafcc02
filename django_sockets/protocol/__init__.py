"""The server side of the client protocol `django-sockets.v1`; see docs/client-protocol.md."""
