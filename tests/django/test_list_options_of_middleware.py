"""The list options of the middleware refuse a string, whose characters would be the entries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from django_sockets.errors import ConfigurationError
from django_sockets.middleware import (
    BaseTokenAuthMiddleware,
    DRFTokenAuthMiddleware,
    OriginMiddleware,
    SessionAuthMiddleware,
    secure,
)


async def app(*_: Any) -> None: ...


def keywords(value: Any) -> None:
    type("Tokens", (BaseTokenAuthMiddleware,), {"keywords": value})


def keywords_of_an_instance(value: Any) -> None:
    class Tokens(BaseTokenAuthMiddleware):
        def __init__(self) -> None:
            self.keywords = value
            super().__init__(app)

    Tokens()


OPTIONS: dict[str, Callable[[Any], Any]] = {
    "allowed_origins": lambda value: OriginMiddleware(app, value),
    "allowed_origins of secure": lambda value: secure(app, allowed_origins=value),
    "allowed_hosts": lambda value: OriginMiddleware(app, (), value),
    "select_related": lambda value: SessionAuthMiddleware(app, value),
    "select_related of tokens": lambda value: DRFTokenAuthMiddleware(app, value),
    "select_related of secure": lambda value: secure(app, select_related=value),
    "keywords": keywords,
    "keywords of an instance": keywords_of_an_instance,
}


@pytest.mark.parametrize("value", ["profile", b"profile", {"profile": 1}, 7])
@pytest.mark.parametrize("option", OPTIONS)
def test_a_text_in_place_of_a_list_is_refused(
    option: str, value: Any, django_project: None
) -> None:
    with pytest.raises(ConfigurationError) as refused:
        OPTIONS[option](value)
    assert option.partition(" ")[0] in str(refused.value)
    assert "no list: write [" in str(refused.value)


@pytest.mark.parametrize("option", OPTIONS)
def test_lists_are_accepted(option: str, django_project: None) -> None:
    for kind in (list, tuple, frozenset):
        OPTIONS[option](kind(["profile"]))
