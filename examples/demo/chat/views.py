"""The page of the demo."""

import secrets

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render

from django_sockets.conf import default_config

from .messages import MAX_NAME, MAX_TEXT

POLICY = "default-src 'self'; script-src 'self' 'nonce-{}'; base-uri 'none'; object-src 'none'"


def room(request: HttpRequest) -> HttpResponse:
    nonce = secrets.token_urlsafe(16)  # {% django_sockets_client %} puts it on the import map.
    context = {
        "broker": default_config().url,  # Its text form does not contain the password.
        "csp_nonce": nonce,
        "max_name": MAX_NAME,
        "max_text": MAX_TEXT,
    }
    response = render(request, "chat/room.html", context)
    response["Content-Security-Policy"] = POLICY.format(nonce)
    return response
