"""The token of a handshake, and the subprotocols that remain without it.

A browser's `WebSocket` cannot set headers, only subprotocols: it offers
`["django-sockets.token", key]` and optionally others. The response repeats the accepted
subprotocol, so that the key itself must not be the accepted one.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import parse_qs

from .base import Refused

__all__ = ["TOKEN_PROTOCOL", "Offer", "read_offer"]

logger = logging.getLogger("django_sockets")

TOKEN_PROTOCOL = "django-sockets.token"  # noqa: S105 - the name of the protocol, no secret
PUBLISHED_PREFIX = "Token."
MAX_CHARS = 8192
"""The longest token. Servers allow about as much for all headers together."""
_PROTOCOL = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
"""RFC 9110, section 5.6.2: a token, which a subprotocol must be (RFC 6455, section 4.1)."""
_CREDENTIAL = re.compile(r"[\x21-\x7e]+")
CHALLENGE = [(b"www-authenticate", b"Token")]
"""The header that a 401 response must have (RFC 9110, section 15.5.2)."""

_hinted = False


@dataclasses.dataclass(frozen=True)
class Offer:
    """The offer of a handshake.

    Attributes:
        token: the token, or None.
        subprotocols: the subprotocols besides the token.
        answer: the subprotocol to accept if the application names none.
    """

    token: str | None = dataclasses.field(repr=False)
    subprotocols: Sequence[str]
    answer: str | None


def read_offer(
    scope: Mapping[str, Any], keywords: Sequence[str], query_parameter: str | None
) -> Offer:
    """Find the token of a handshake.

    Raises:
        Refused: the token is malformed, or there are several.
    """
    in_protocols, subprotocols, answer = _from_subprotocols(list(scope.get("subprotocols") or ()))
    found = [*in_protocols, *_from_headers(scope, keywords)]
    if query_parameter is not None:
        found += _from_query(scope, query_parameter)
    if len(set(found)) > 1:
        raise Refused(401, "several tokens", CHALLENGE)
    for token in found:
        if len(token) > MAX_CHARS or not _CREDENTIAL.fullmatch(token):
            raise Refused(401, "a malformed token", CHALLENGE)
    return Offer(found[0] if found else None, subprotocols, answer)


def _from_subprotocols(offered: list[str]) -> tuple[list[str], list[str], str | None]:
    if not all(_PROTOCOL.fullmatch(name) for name in offered):
        raise Refused(400, "a malformed subprotocol")
    tokens, others, names = [], [], iter(offered)
    marked = False
    for name in names:
        if name == TOKEN_PROTOCOL:
            marked = True
            token = next(names, None)
            if token is None:
                raise Refused(401, f"{TOKEN_PROTOCOL} without a token after it", CHALLENGE)
            tokens.append(token)
        elif name.startswith(PUBLISHED_PREFIX) and name != PUBLISHED_PREFIX:
            tokens.append(name.removeprefix(PUBLISHED_PREFIX))
        else:
            others.append(name)
    if others:
        return tokens, others, others[0]
    if marked:
        return tokens, [TOKEN_PROTOCOL], TOKEN_PROTOCOL
    if tokens:
        _hint()
        return tokens, [], PUBLISHED_PREFIX + tokens[0]
    return tokens, [], None


def _hint() -> None:
    global _hinted
    if not _hinted:
        _hinted = True
        logger.warning(
            "a client offers Token.<key> as its only subprotocol, which puts the key into the "
            'answer: offer ["%s", key]',
            TOKEN_PROTOCOL,
        )


def _from_headers(scope: Mapping[str, Any], keywords: Sequence[str]) -> list[str]:
    lines = [value for name, value in scope.get("headers", ()) if name.lower() == b"authorization"]
    if len(lines) > 1:
        raise Refused(401, "several Authorization headers", CHALLENGE)
    for line in lines:
        keyword, _, token = bytes(line).decode("latin-1").partition(" ")
        if keyword.lower() in {known.lower() for known in keywords}:
            return [token.strip(" ")]
    return []


def _from_query(scope: Mapping[str, Any], name: str) -> list[str]:
    query = bytes(scope.get("query_string") or b"").decode("latin-1")
    try:
        return parse_qs(query, keep_blank_values=True, max_num_fields=1000).get(name, [])
    except ValueError as exc:
        raise Refused(400, "a query string with too many fields") from exc
