"""The chat page. Django's own views handle login and logout."""

from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render

from .rooms import ROOMS
from .sockets import MAX_TEXT


@login_required
def page(request: HttpRequest) -> HttpResponse:
    return render(request, "chat/page.html", {"rooms": ROOMS.values(), "max_text": MAX_TEXT})
