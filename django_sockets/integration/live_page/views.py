"""The views of the live page. `live_page_urls` makes them for one broker."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, NamedTuple, TypeVar

from asgiref.sync import sync_to_async
from django.conf import settings
from django.contrib import admin, messages
from django.contrib.auth import get_user_model
from django.contrib.auth.decorators import login_not_required
from django.contrib.auth.views import redirect_to_login
from django.core.exceptions import ValidationError
from django.db import transaction
from django.http import HttpRequest, HttpResponse, HttpResponseBase, JsonResponse
from django.shortcuts import redirect, render
from django.urls import URLPattern, path, reverse
from django.views.decorators.cache import never_cache
from django.views.decorators.clickjacking import xframe_options_deny
from django.views.decorators.csrf import csrf_protect
from django.views.decorators.http import require_GET, require_http_methods, require_safe

from ...closing import close_sockets
from ...conf import Source, default_config_and_origin, load_config
from ...errors import BrokerError
from ...forks import PerProcess
from ...log import shown
from ...loops import forget_closed
from ...runtime import background_loop
from ..server_sent_events import events_view
from .access import forbidden, may_close, may_see
from .broker_check import BrokerCheck
from .feed import Feed, FeedEnded, private_broker

__all__ = ["LivePage"]

logger = logging.getLogger("django_sockets")

MOST_USER_CHARACTERS = 255
"""The longest id of a user in the form."""

T = TypeVar("T")
SyncView = Callable[[HttpRequest], HttpResponse]
AsyncView = Callable[[HttpRequest], Coroutine[Any, Any, HttpResponseBase]]


class _Parts(NamedTuple):
    """The parts of the page on one event loop."""

    feed: Feed
    broker_check: BrokerCheck


class LivePage:
    """The live page of one broker.

    Args:
        config: the broker; None for the configured one.

    Attributes:
        urls: the URLs of the page.
    """

    def __init__(self, config: Source | None = None) -> None:
        self._config = None if config is None else load_config(config)
        self._pages = private_broker()
        self._parts: PerProcess[dict[asyncio.AbstractEventLoop, _Parts]] = PerProcess(dict)
        self._events = events_view(self._channel, config=self._pages, replay=1)
        self.urls: list[URLPattern] = [
            path("", require_safe(_page(self._page)), name="live-page"),
            path("stream/", _data(self._stream), name="live-page-stream"),
            path("snapshot/", _data(self._snapshot), name="live-page-snapshot"),
            path("broker/", _data(self._broker), name="live-page-broker"),
            path("close/", _page(self._close), name="live-page-close"),
        ]

    # Reading

    def _page(self, request: HttpRequest) -> HttpResponse:
        loaded = load_config(self._config)
        addresses = {
            name: _url(request, f"live-page-{name}")
            for name in ("stream", "snapshot", "broker", "close")
        }
        if getattr(request, "scope", None) is None:  # WSGI cannot stream.
            del addresses["stream"]
        context = {"addresses": addresses, "broker": str(loaded.url)}
        return _rendered(request, "live_page", "Sockets", context)

    async def _stream(self, request: HttpRequest) -> HttpResponseBase:
        return await self._events(request)

    async def _channel(self, request: HttpRequest) -> str:
        return self._parts_here().feed.watch(request)

    async def _snapshot(self, request: HttpRequest) -> HttpResponseBase:
        try:
            picture = await _on_lasting_loop(request, lambda: self._parts_here().feed.picture())
        except FeedEnded:
            problem = "There is no picture, because the broker or the process does not answer."
            return JsonResponse({"problem": problem}, status=503)
        return HttpResponse(picture, content_type="application/json")

    async def _broker(self, request: HttpRequest) -> HttpResponseBase:
        found = await _on_lasting_loop(request, lambda: self._parts_here().broker_check.report())
        return HttpResponse(json.dumps(found), content_type="application/json")

    def _parts_here(self) -> _Parts:
        """The parts on the running event loop. A new configuration, as in tests, has new ones."""
        config, source = (self._config, "argument")
        if config is None:
            config, source = default_config_and_origin()
        loop, by_loop = asyncio.get_running_loop(), self._parts.current
        parts = by_loop.get(loop)
        if parts is None or parts.feed.config != config:
            forget_closed(by_loop)
            parts = by_loop[loop] = _Parts(Feed(config, self._pages), BrokerCheck(config, source))
        return parts

    # Closing sockets

    def _close(self, request: HttpRequest) -> HttpResponse:
        """Ask for a confirmation (GET), and close the sockets of a user (POST)."""
        if not may_close(request):
            text = "To close the sockets of a user, you need the permission to change users."
            return HttpResponse(f"{text}\n", status=403, content_type="text/plain")
        given = request.POST if request.method == "POST" else request.GET
        user = given.get("user", "").strip()
        page = _url(request, "live-page")
        if not user or len(user) > MOST_USER_CHARACTERS:
            messages.error(request, "Enter the id of the user whose sockets you want to close.")
            return redirect(page)
        if request.method != "POST":
            context = {"user_id": user, "name": _name_of(user), "page": page}
            return _rendered(request, "live_page_close", "Close the sockets of a user", context)
        self._close_sockets_of(user, request)
        return redirect(page)

    def _close_sockets_of(self, user: str, request: HttpRequest) -> None:
        try:
            close_sockets(user=user, config=self._config)
        except BrokerError as exc:
            text = f"Only sockets of one process were closed. The others were not reached: {exc}"
            messages.error(request, text)
            return
        logger.info(
            "the sockets of user %s are closed from the live page, by user %s (%s)",
            shown(user),
            shown(str(request.user.pk)),
            shown(request.user.get_username()),
        )
        text = f"All processes have been told to close the sockets of user {user}."
        messages.success(request, text)


def _url(request: HttpRequest, name: str) -> str:
    """The URL of a view of this page, in the namespace in which the project has included it."""
    match = request.resolver_match
    namespaces = [] if match is None else match.namespaces
    return reverse(":".join([*namespaces, name]))


def _rendered(
    request: HttpRequest, template: str, title: str, context: dict[str, Any]
) -> HttpResponse:
    around = admin.site.each_context(request)
    both = {**around, "title": title, "may_close": may_close(request), **context}
    return render(request, f"django_sockets/{template}.html", both)


def _name_of(user: str) -> str | None:
    """The name of the user with this primary key, if there is one."""
    manager = get_user_model()._default_manager
    try:
        found = manager.filter(pk=user).first()
    except (TypeError, ValueError, ValidationError, OverflowError):
        return None  # The tag is not a primary key.
    return None if found is None else str(found.get_username())


async def _on_lasting_loop(request: HttpRequest, call: Callable[[], Awaitable[T]]) -> T:
    """Await `call()` on the loop of the server, or on the library's own loop under WSGI.

    Django gives each async view under WSGI an event loop of its own, which ends with the view.
    """

    async def called() -> T:
        return await call()

    if getattr(request, "scope", None) is not None:
        return await called()
    return await asyncio.wrap_future(background_loop().schedule(called()))


def _page(view: SyncView) -> SyncView:
    """A view for people. Users without the right to see it are sent to the login of the admin."""

    def checked(request: HttpRequest) -> HttpResponse:
        if may_see(request):
            return view(request)
        if request.method == "POST":
            return HttpResponse("Log in to the admin.\n", status=403, content_type="text/plain")
        login = reverse("admin:login", current_app=admin.site.name)
        return redirect_to_login(request.get_full_path(), login)

    methods = require_http_methods(["GET", "HEAD", "POST"])
    return login_not_required(never_cache(xframe_options_deny(csrf_protect(methods(checked)))))


def _data(view: AsyncView) -> AsyncView:
    """A view for the script of the page."""

    async def checked(request: HttpRequest) -> HttpResponseBase:
        refusal = await sync_to_async(forbidden)(request)  # It may load the user.
        return refusal or await view(request)

    decorated = login_not_required(never_cache(xframe_options_deny(require_GET(checked))))
    for alias in settings.DATABASES:  # ATOMIC_REQUESTS would refuse an async view.
        decorated = transaction.non_atomic_requests(using=alias)(decorated)
    return decorated
