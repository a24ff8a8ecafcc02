"""The pages, and a view that speaks to a room."""

from asgiref.sync import async_to_sync
from channels.layers import get_channel_layer
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_POST


def index(request: HttpRequest) -> HttpResponse:
    name = request.GET.get("name", "")
    if name.replace("-", "").isalnum() and name.isascii():
        return redirect("room", name=name)
    return render(request, "rooms/index.html")


def room(request: HttpRequest, name: str) -> HttpResponse:
    return render(request, "rooms/room.html", {"name": name})


@require_POST
def announce(request: HttpRequest, name: str) -> HttpResponse:
    """Speak to everybody in the room, from a view that has no websocket."""
    message = {"type": "room.said", "text": "The clock strikes."}
    async_to_sync(get_channel_layer().group_send)(f"room.{name}", message)
    return HttpResponse(status=204)
