"""Middleware of Django that gets in the way of a stream."""

from __future__ import annotations

from typing import Any

from asgiref.sync import markcoroutinefunction
from django.http import HttpResponse


class Dropping:
    """Drops the response of the view."""

    async_capable = True
    sync_capable = False

    def __init__(self, get_response: Any) -> None:
        markcoroutinefunction(self)
        self.get_response = get_response

    async def __call__(self, request: Any) -> HttpResponse:
        await self.get_response(request)
        return HttpResponse("something else")


class OnlySync:
    """Runs in a thread: Django calls the view from there."""

    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response

    def __call__(self, request: Any) -> Any:
        return self.get_response(request)
