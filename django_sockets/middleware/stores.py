"""Django's session engines: load one session, and ask which of many are still there.

Everything here works on the database or a cache and belongs on a thread. An engine that swallows
the error of its cache and reports an empty session is asked again, so that the error is seen.
"""

from __future__ import annotations

import contextlib
import importlib
import re
from collections.abc import Collection, Sequence
from typing import Any

__all__ = ["load_session", "surviving"]

CHUNK = 500
"""Sessions of one query."""
MAX_KEY_CHARS = 4096
"""Of a cookie (RFC 6265, section 6.1); what is longer did not come from Django."""
_CACHEABLE = re.compile(r"[!-~]{8,200}")
"""Keys that every cache takes, memcached included; Django's own have 32 characters."""


def _store_class() -> Any:
    from django.conf import settings

    return importlib.import_module(settings.SESSION_ENGINE).SessionStore


def load_session(key: str | None) -> tuple[Any, bool]:
    """The session of a cookie, and whether there is one.

    Raises:
        What the engine, the database or the cache raises.
    """
    if key is not None and len(key) > MAX_KEY_CHARS:
        key = None
    store = _store_class()(key)
    if key is None:
        return store, False
    empty = store.is_empty()  # Looks at the key only, unless the data were loaded.
    data = dict(store.items())
    if not data and store.session_key != key and not empty:
        _raise_what_was_swallowed(store, key)
    return store, bool(data) and store.session_key == key


def _raise_what_was_swallowed(store: Any, key: str) -> None:
    """The cache engine takes a cache that is down for a session that is gone."""
    from django.conf import settings
    from django.contrib.sessions.backends.cache import SessionStore
    from django.core.cache import caches

    if isinstance(store, SessionStore) and _CACHEABLE.fullmatch(key):
        caches[settings.SESSION_CACHE_ALIAS].get(store.cache_key_prefix + key)


def surviving(keys: Sequence[str]) -> Collection[str]:
    """The keys whose sessions are there and have not expired.

    One query, in chunks, for the db engine; one call of the cache for the cache engine, and both
    for cached_db; any other engine loads each session.

    Raises:
        What the engine, the database or the cache raises.
    """
    from django.contrib.sessions.backends import cache, cached_db, db

    engine = _store_class()
    if engine.load is db.SessionStore.load:
        return _in_database(engine, keys)
    if engine.load is cache.SessionStore.load:
        return _in_cache(engine, keys)
    if engine.load is cached_db.SessionStore.load:
        found: set[str] = set()
        with contextlib.suppress(Exception):  # As the engine does: the database decides.
            found = _in_cache(engine, keys)
        return found | _in_database(engine, [key for key in keys if key not in found])
    return {key for key in keys if load_session(key)[1]}


def _in_database(engine: Any, keys: Sequence[str]) -> set[str]:
    from django.utils import timezone

    sessions = engine.get_model_class().objects.filter(expire_date__gt=timezone.now())
    found: set[str] = set()
    for start in range(0, len(keys), CHUNK):
        chunk = sessions.filter(session_key__in=keys[start : start + CHUNK])
        found.update(chunk.values_list("session_key", flat=True))
    return found


def _in_cache(engine: Any, keys: Sequence[str]) -> set[str]:
    prefix = engine.cache_key_prefix
    found = engine()._cache.get_many([prefix + key for key in keys])
    return {key for key in keys if prefix + key in found}
