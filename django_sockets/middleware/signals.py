"""What Django tells at once: logout, a changed or deleted user, a deleted token.

Each closes the open sockets on every process, after the transaction; what fails or is not told
(`queryset.update`, expiry, raw SQL) is left to `watch`. There is no signal of the session model
here on purpose: with one connected, Django's `clearsessions` would load every expired session to
send it, in place of one DELETE.
"""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import Future
from typing import Any

from ..closing import async_close_sockets, close_local_sockets, on_missed_orders
from ..errors import ThreadError
from ..log import LogThrottle
from ..runtime.background import background_loop, finish_before_exit
from ..url import BrokerOptions
from .tags import digest
from .watch import check_soon

__all__ = ["Order", "connect_signals", "connect_token_signals"]

logger = logging.getLogger("django_sockets")
_throttle = LogThrottle(logger, BrokerOptions.log_interval_seconds)


def connect_signals() -> None:
    """Listen to Django's signals; may be called often.

    Every middleware does it. Call it yourself, from an `AppConfig.ready`, in processes that serve
    no websockets: there a logout then closes sockets at once, and within `session_check_seconds`
    otherwise.
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
    """Listen to the deletion of the tokens of Django REST framework; may be called often."""
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
        # Set by set_password and cleared after the save. Tokens survive a new password.
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
    """An order to close the sockets with some tags, to be called after the commit; acts once.

    The test kit finds it among the callbacks of a test's transaction, which is never committed.
    """

    def __init__(self, tags: dict[str, Any]) -> None:
        self._tags = tags
        self._given = False

    def __call__(self) -> None:
        if not self._given:
            self._given = True
            _schedule(self._tags)


def _schedule(tags: dict[str, Any]) -> None:
    """Order it from the background: a broker that is down must not hold up who logs out."""
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
        logging.WARNING, "order", "sockets of other processes close a little later: %s", exc
    )
