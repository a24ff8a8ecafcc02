"""Django, configured for the tests in this folder and for no other."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# The project in `testkit` is run by subprocesses only.
collect_ignore = ["testkit"]

FOLDER = Path(__file__).resolve().parent


@pytest.fixture(scope="package", autouse=True)
def django_project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    from django.conf import empty, settings

    import django

    if settings.configured:  # By whoever runs these tests in a project of theirs.
        yield
        return
    os.environ["MEMBERS_FOLDER"] = str(tmp_path_factory.mktemp("members"))
    if str(FOLDER) not in sys.path:
        sys.path.insert(0, str(FOLDER))
    from members import settings as project

    settings.configure(**{name: getattr(project, name) for name in dir(project) if name.isupper()})
    django.setup()

    from django.core.management import call_command
    from django.db import connections

    call_command("migrate", verbosity=0)
    connections.close_all()
    yield
    connections.close_all()
    # The tests of the rest of the library run without settings.
    settings._wrapped = empty


@pytest.fixture
def database(django_project: None) -> Iterator[Any]:
    """The tables of the project, emptied after the test."""
    from django.core.management import call_command
    from django.db import connections

    yield connections["default"]
    call_command("flush", interactive=False, verbosity=0)
    connections.close_all()


class Members:
    """Users of the test project, their logins, and the queries that are made."""

    def __init__(self) -> None:
        self.queries: list[str] = []

    def handshake_queries(self) -> list[str]:
        """The queries without those of the watch, which may check the open socket at any time."""
        return [query for query in self.queries if not query.startswith("django_sockets watch")]

    def create(self, name: str = "ann", **fields: Any) -> Any:
        from django.contrib.auth import get_user_model

        return get_user_model().objects.create_user(name, password="first", **fields)

    def login(
        self, user: Any, backend: str = "django.contrib.auth.backends.ModelBackend", **data: Any
    ) -> str:
        """Log in as a view does; returns the session key."""
        from importlib import import_module

        from django.conf import settings
        from django.contrib.auth import login
        from django.http import HttpRequest

        request = HttpRequest()
        request.session = import_module(settings.SESSION_ENGINE).SessionStore()
        login(request, user, backend=backend)
        request.session.update(data)
        request.session.save()
        return str(request.session.session_key)

    def logout(self, key: str) -> None:
        """Log out as a view does."""
        from importlib import import_module

        from django.conf import settings
        from django.contrib.auth import get_user, logout
        from django.http import HttpRequest

        request = HttpRequest()
        request.session = import_module(settings.SESSION_ENGINE).SessionStore(key)
        request.user = get_user(request)
        logout(request)

    async def do(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Work on the database, from a coroutine."""
        from django.db import connections

        def work() -> Any:
            try:
                return call(*args, **kwargs)
            finally:
                connections.close_all()

        return await asyncio.to_thread(work)


@pytest.fixture
def members(database: Any) -> Iterator[Members]:
    from django.db.backends.signals import connection_created

    people = Members()

    def watch_queries(connection: Any, **_: Any) -> None:
        def note(execute: Any, sql: str, *rest: Any) -> Any:
            people.queries.append(f"{threading.current_thread().name}: {sql}")
            return execute(sql, *rest)

        connection.execute_wrappers[:] = [note]  # A thread keeps its connection object.

    connection_created.connect(watch_queries)
    yield people
    connection_created.disconnect(watch_queries)


@pytest.fixture
def settings_of(database: Any) -> Iterator[Any]:
    """A function that changes settings for the rest of the test."""
    from django.test import override_settings

    with contextlib.ExitStack() as stack:

        def change(**values: Any) -> None:
            stack.enter_context(override_settings(**values))

        yield change
