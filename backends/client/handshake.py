"""The first commands on a new connection: HELLO or AUTH, CLIENT SETNAME and SELECT.

RESP3 is tried first. RESP2 is chosen if the server has refused HELLO with an error, because old
servers and proxies report an unknown command in many ways. Only a refusal of the credentials, or of
everything at this moment, is final.

A connection that is closed in place of a reply proves nothing, because a fault may have closed it,
and a subscriber with RESP2 could read no history and no presence as long as it lives. RESP2 is
chosen only if the server closes connections that have just answered other commands, as some proxies
do.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from ...redaction import mask
from .connect_errors import Refused
from .connection import ServerConnection, ask
from .credentials import Credentials
from .identity import IDENTIFY, NOT_NOW, read_identity
from .parser import ConnectionLost, ReplyError

__all__ = ["Login", "shake_hands"]

FIRST_ATTEMPTS = 2
"""Connections that may be closed in place of a reply to HELLO before RESP2 is looked into."""
PROOFS = 2
"""Connections with RESP2 that have to be closed because of HELLO before RESP2 is chosen."""

Open = Callable[[int], Awaitable[ServerConnection]]
"""Opens a connection without a handshake, for RESP version 2 or 3."""

_CREDENTIALS = re.compile(
    r"(WRONGPASS|NOAUTH)\b|invalid (user|password)|username-password|password is set"
    r"|without any password|authentication (is )?(failed|required)|auth(entication)? failed",
    re.IGNORECASE,
)
_WANTED = re.compile(r"NOAUTH\b|authentication (is )?required", re.IGNORECASE)
_COMMAND = re.compile(r"\bcommand\b|\bhello\b", re.IGNORECASE)
_REFUSES_ALL = "ERR max number of clients"
_ECHO = re.compile(r",? with args beginning with.*", re.IGNORECASE | re.DOTALL)


class Login(NamedTuple):
    """The contents of a handshake.

    Attributes:
        database: the number of the database; None and 0 stand for the first.
        client_name: the name that CLIENT LIST shows.
    """

    credentials: Credentials = Credentials(None, None)
    database: int | None = None
    client_name: str | None = None

    @property
    def offered(self) -> bool:
        """Whether there are credentials."""
        return bool(self.credentials.username or self.credentials.password)


async def shake_hands(open_: Open, login: Login, protocol: int | None) -> ServerConnection:
    """Open a connection, log in, and ask for the identity of the server.

    Args:
        protocol: the RESP version, 2 or 3; with None, 3 if the server has it, else 2.

    Raises:
        Refused: the server refused a command.
        ConnectionLost: the server closed the connection.
        OSError: no connection could be made.
    """
    if protocol is not None:
        return await _begin(open_, login, protocol)
    for _ in range(FIRST_ATTEMPTS):
        try:
            return await _begin(open_, login, 3)
        except Refused as exc:
            if exc.command != "HELLO" or _is_final(exc, login):
                raise
            refused = exc
        if not isinstance(refused.__cause__, ConnectionLost):
            break
    else:
        for _ in range(PROOFS):
            connection = await _begin(open_, login, 2)
            if await _survives_hello(connection, login):
                return connection
    try:
        return await _begin(open_, login, 2)
    except ConnectionLost:
        if refused.of_credentials:
            raise refused from None
        raise


def _is_final(refused: Refused, login: Login) -> bool:
    """Whether RESP2 would be refused, too, or is no answer to this refusal of HELLO."""
    if refused.of_credentials:
        # A proxy without HELLO may ask for AUTH even if HELLO carried the credentials.
        return not (login.offered and _WANTED.search(str(refused)))
    return refused.temporary


async def _survives_hello(connection: ServerConnection, login: Login) -> bool:
    """Change a connection that has answered other commands to RESP3, if the server has it.

    Returns:
        False if the server has closed the connection.

    Raises:
        Refused: the server refuses everything at this moment.
    """
    try:
        (reply,) = await ask(connection, [(b"HELLO", b"3")])
        if isinstance(reply, ReplyError):
            refused = _refused("HELLO", str(reply), login)
            if refused.temporary:
                raise refused
    except ConnectionLost:
        connection.abort()
        return False
    except BaseException:
        connection.abort()
        raise
    if isinstance(reply, dict):
        connection.protocol = 3
    return True


async def _begin(open_: Open, login: Login, protocol: int) -> ServerConnection:
    connection = await open_(protocol)
    try:
        if protocol == 3:
            await _hello(connection, login)
        elif login.offered:
            await _auth(connection, login)
        await _prepare(connection, login)
    except BaseException:
        connection.abort()
        raise
    return connection


async def _hello(connection: ServerConnection, login: Login) -> None:
    command: tuple[bytes, ...] = (b"HELLO", b"3")
    if login.offered:
        username, password = login.credentials
        command += (b"AUTH", (username or "default").encode(), (password or "").encode())
    try:
        (reply,) = await ask(connection, [command])
    except ConnectionLost as exc:
        raise _refused("HELLO", str(exc), login) from exc
    if isinstance(reply, ReplyError):
        raise _refused("HELLO", str(reply), login)
    if not isinstance(reply, dict):
        raise _refused("HELLO", "the reply is not that of RESP3", login)


async def _auth(connection: ServerConnection, login: Login) -> None:
    username, password = login.credentials
    secret = (password or "").encode()
    command = (b"AUTH", username.encode(), secret) if username else (b"AUTH", secret)
    (reply,) = await ask(connection, [command])
    if username and isinstance(reply, ReplyError) and "wrong number of arg" in str(reply):
        (reply,) = await ask(
            connection, [(b"AUTH", secret)]
        )  # A server before Redis 6 has no users.
    _check("AUTH", reply, login)


async def _prepare(connection: ServerConnection, login: Login) -> None:
    """Send CLIENT SETNAME and SELECT, and ask for the identity of the server."""
    commands: dict[str, tuple[bytes, ...]] = {}
    if login.client_name:
        commands["CLIENT SETNAME"] = (b"CLIENT", b"SETNAME", login.client_name.encode())
    if login.database:
        commands["SELECT"] = (b"SELECT", b"%d" % login.database)
    *replies, role, info = await ask(connection, [*commands.values(), *IDENTIFY])
    for command, reply in zip(commands, replies, strict=True):
        _check(command, reply, login)
    if isinstance(role, ReplyError) and _WANTED.match(str(role)):
        raise _refused("ROLE", str(role), login)
    connection.identity = read_identity([role, info])._replace(peer=connection.identity.peer)


def _check(command: str, reply: Any, login: Login) -> None:
    if isinstance(reply, ReplyError):
        raise _refused(command, str(reply), login)


def _refused(command: str, said: str, login: Login) -> Refused:
    # Servers before Redis 7 repeat the arguments of an unknown command, the password included.
    said = mask(_ECHO.sub("", said), login.credentials.password)
    of_credentials = bool(_CREDENTIALS.search(said)) or (
        said.startswith("NOPERM")
        and (command == "AUTH" or (command == "HELLO" and not _COMMAND.search(said)))
    )
    temporary = said.startswith((*NOT_NOW, _REFUSES_ALL))
    return Refused(command, said, of_credentials=of_credentials, temporary=temporary)
