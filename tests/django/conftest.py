"""Django, configured for the tests in this folder and for no other."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

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
