"""The first commands on a new connection: HELLO or AUTH, CLIENT SETNAME and SELECT.

RESP3 is tried first. If the server refuses HELLO with any error, or closes two connections, RESP2
is tried on a new connection: old servers and proxies report an unknown command in many ways. Only a
refusal of the credentials is final.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from ...redaction import mask
from .connect_errors import Refused
from .connection import ServerConnection, ask
from .credentials import Credentials
from .identity import IDENTIFY, read_identity
from .parser import ConnectionLost, ReplyError

__all__ = ["Login", "shake_hands"]

HELLO_ATTEMPTS = 2
"""Connections that are closed in place of a reply to HELLO, before RESP2 is tried. A single one may
be closed by a fault, and a subscriber with RESP2 could read no history and no presence."""

Open = Callable[[int], Awaitable[ServerConnection]]
"""Opens a connection without a handshake, for RESP version 2 or 3."""

_CREDENTIALS = re.compile(
    r"(WRONGPASS|NOAUTH)\b|invalid (user|password)|username-password|password is set"
    r"|without any password|authentication (is )?(failed|required)|auth(entication)? failed",
    re.IGNORECASE,
)
_WANTED = re.compile(r"NOAUTH\b|authentication (is )?required", re.IGNORECASE)
_COMMAND = re.compile(r"\bcommand\b|\bhello\b", re.IGNORECASE)
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
    for _ in range(HELLO_ATTEMPTS):
        try:
            return await _begin(open_, login, 3)
        except Refused as exc:
            # A proxy without HELLO may ask for AUTH even if HELLO carried the credentials.
            final = exc.of_credentials and not (login.offered and _WANTED.search(str(exc)))
            if exc.command != "HELLO" or final:
                raise
            refused = exc
        if not isinstance(refused.__cause__, ConnectionLost):
            break
    try:
        return await _begin(open_, login, 2)
    except ConnectionLost:
        if refused.of_credentials:
            raise refused from None
        raise


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
    return Refused(command, said, of_credentials=of_credentials)
