"""Django's session engines: load one session, and find out which of many are still valid.

Every function here queries the database or a cache: call it on a thread. The cache engine hides an
error of its cache and returns an empty session; here the cache is read again to raise the error.
"""

from __future__ import annotations

import contextlib
import importlib
import re
from collections.abc import Collection, Sequence
from typing import Any

__all__ = ["load_session", "surviving"]

CHUNK = 500
"""The most sessions of one query."""
MAX_KEY_CHARS = 4096
"""The longest cookie that browsers must store (RFC 6265, section 6.1). Django sets shorter ones."""
_CACHEABLE = re.compile(r"[!-~]{8,200}")
"""Keys that every cache accepts, including memcached. Django's own keys have 32 characters."""


def _store_class() -> Any:
    from django.conf import settings

    return importlib.import_module(settings.SESSION_ENGINE).SessionStore


def load_session(key: str | None) -> tuple[Any, bool]:
    """The session of a cookie, and whether it exists.

    Raises:
        Exception: any error of the engine, the database or the cache.
    """
    if key is not None and len(key) > MAX_KEY_CHARS:
        key = None
    store = _store_class()(key)
    if key is None:
        return store, False
    empty = store.is_empty()  # This only reads the key: the data are not loaded yet.
    data = dict(store.items())
    if not data and store.session_key != key and not empty:
        _raise_what_was_swallowed(store, key)
    return store, bool(data) and store.session_key == key


def _raise_what_was_swallowed(store: Any, key: str) -> None:
    """Raise the error of a cache that is down, which the cache engine reports as no session."""
    from django.conf import settings
    from django.contrib.sessions.backends.cache import SessionStore
    from django.core.cache import caches

    if isinstance(store, SessionStore) and _CACHEABLE.fullmatch(key):
        caches[settings.SESSION_CACHE_ALIAS].get(store.cache_key_prefix + key)


def surviving(keys: Sequence[str]) -> Collection[str]:
    """The keys whose sessions exist and have not expired.

    The db engine takes one query for each `CHUNK` of keys, the cache engine one call of the cache,
    and cached_db both. With any other engine each session is loaded.

    Raises:
        Exception: any error of the engine, the database or the cache.
    """
    from django.contrib.sessions.backends import cache, cached_db, db

    engine = _store_class()
    if engine.load is db.SessionStore.load:
        return _in_database(engine, keys)
    if engine.load is cache.SessionStore.load:
        return _in_cache(engine, keys)
    if engine.load is cached_db.SessionStore.load:
        found: set[str] = set()
        with contextlib.suppress(Exception):  # The engine does the same: the database decides.
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
