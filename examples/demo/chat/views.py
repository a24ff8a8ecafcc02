"""The page of the demo."""

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render

from django_sockets.conf import default_config

from .sockets import MAX_NAME, MAX_TEXT


def room(request: HttpRequest) -> HttpResponse:
    broker = default_config().url  # Its text form does not contain the password.
    context = {"broker": broker, "max_name": MAX_NAME, "max_text": MAX_TEXT}
    return render(request, "chat/room.html", context)
