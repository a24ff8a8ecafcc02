"""Django's signals that close sockets: logout, a changed or deleted user, a deleted token.

Each signal closes the open sockets in every process, after the transaction. `watch` finds changes
that send no signal (`queryset.update`, expiry, raw SQL) and repeats what failed here. No signal of
the session model is connected: with one, Django's `clearsessions` would load each expired session
instead of deleting all of them in one query.
"""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import Future
from typing import Any

from ..closing import async_close_sockets, close_local_sockets, on_missed_orders
from ..errors import ThreadError
from ..log import LogThrottle
from ..runtime import background_loop, finish_before_exit
from ..url import BrokerOptions
from .tags import digest
from .watch import check_soon

__all__ = ["Order", "connect_signals", "connect_token_signals"]

logger = logging.getLogger("django_sockets")
_throttle = LogThrottle(logger, BrokerOptions.log_interval_seconds)


def connect_signals() -> None:
    """Listen to Django's signals. A repeated call has no effect.

    Every middleware calls this. Call it yourself, from an `AppConfig.ready`, in processes that
    serve no websockets: a logout there then closes sockets at once. Without it they are closed
    within `session_check_seconds`.
    """
    from django.conf import settings
    from django.contrib.auth.signals import user_logged_out
    from django.db.models.signals import post_delete, post_save

    user = settings.AUTH_USER_MODEL
    user_logged_out.connect(_logged_out, dispatch_uid="django_sockets.logged_out")
    post_save.connect(_user_saved, sender=user, dispatch_uid="django_sockets.user_saved")
    post_delete.connect(_user_deleted, sender=user, dispatch_uid="django_sockets.user_deleted")
    if check_soon not in on_missed_orders:
        on_missed_orders.append(check_soon)


def connect_token_signals() -> None:
    """Listen to the deletion of Django REST framework's tokens. A repeated call has no effect."""
    from django.db.models.signals import post_delete

    post_delete.connect(
        _token_deleted, sender="authtoken.Token", dispatch_uid="django_sockets.token_deleted"
    )


def _logged_out(sender: Any, request: Any = None, **_: Any) -> None:
    key = getattr(getattr(request, "session", None), "session_key", None)
    if key:
        _after_commit(None, session=digest(key))


def _user_saved(
    sender: Any,
    instance: Any,
    created: bool = False,
    raw: bool = False,
    using: str | None = None,
    update_fields: Any = None,
    **_: Any,
) -> None:
    if created or raw:
        return
    if not getattr(instance, "is_active", True):
        _after_commit(using, user=instance.pk)
    elif getattr(instance, "_password", None) is not None:
        # `set_password` sets it and the save clears it. Tokens stay valid with a new password.
        _after_commit(using, user=instance.pk, auth="session")


def _user_deleted(sender: Any, instance: Any, using: str | None = None, **_: Any) -> None:
    _after_commit(using, user=instance.pk)


def _token_deleted(sender: Any, instance: Any, using: str | None = None, **_: Any) -> None:
    _after_commit(using, token=digest(instance.key))


def _after_commit(using: str | None, **tags: Any) -> None:
    from django.db import transaction

    texts = {name: str(value) for name, value in tags.items()}
    transaction.on_commit(Order(texts), using=using, robust=True)


class Order:
    """A callback for `on_commit` that closes the sockets with some tags; only the first call acts.

    The test kit looks for this class among the callbacks of a test's transaction, which is never
    committed.
    """

    def __init__(self, tags: dict[str, Any]) -> None:
        self._tags = tags
        self._given = False

    def __call__(self) -> None:
        if not self._given:
            self._given = True
            _schedule(self._tags)


def _schedule(tags: dict[str, Any]) -> None:
    """Send the order from the background loop: a logout must not wait for a broker that is down."""
    try:
        loop = background_loop()
    except ThreadError as exc:
        close_local_sockets(**tags)
        _late(exc)
        return
    future = asyncio.run_coroutine_threadsafe(async_close_sockets(**tags), loop)
    finish_before_exit(future)
    future.add_done_callback(_ordered)


def _ordered(future: Future[None]) -> None:
    if future.cancelled():
        return
    exc = future.exception()
    if exc is not None:
        _late(exc)


def _late(exc: BaseException) -> None:
    _throttle.log(
        logging.WARNING,
        "order",
        "sockets of other processes close a little later: %s",
        exc,
        extra={"reason": exc},
    )
