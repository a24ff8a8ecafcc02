"""Which server a connection reached: its run id and its role, and how both are asked again.

A server may refuse ROLE or INFO for a while, because it runs a script or because an ACL still has
to be corrected. A refusal therefore never switches a check off. After an error of `NOT_NOW` the
command is sent again at the next turn. After any other error it is sent again after a pause that
doubles from 1 s to 30 s (`RefusalBackoff`).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from .deadlines import Backoff
from .parser import ConnectionLost, ReplyError

__all__ = [
    "IDENTIFY",
    "INFO",
    "PRIMARY",
    "ROLE",
    "SERVER_CHANGED",
    "Identity",
    "IdentityCheck",
    "RefusalBackoff",
    "differ",
    "read_identity",
    "read_role",
    "read_run_id",
]

PRIMARY = "master"
"""The role of a server that accepts writes, as ROLE calls it."""
ROLE: tuple[bytes, ...] = (b"ROLE",)
INFO: tuple[bytes, ...] = (b"INFO", b"server")
IDENTIFY = (ROLE, INFO)
SERVER_CHANGED = "another server answers at this address now"
NOT_NOW = ("BUSY", "LOADING", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN")
"""Prefixes of errors whose cause soon ends by itself."""


class Identity(NamedTuple):
    """The server at the other end of a connection.

    Attributes:
        run_id: changes with each start of the server; "" if INFO is not allowed.
        role: "master", "slave", ...; "" if ROLE is not allowed.
        peer: the numeric address that answered; "" for a unix socket.
    """

    run_id: str = ""
    role: str = ""
    peer: str = ""


def differ(one: Identity, other: Identity) -> bool:
    """Whether two connections are known to lead to different servers."""
    return bool(one.run_id and other.run_id) and one.run_id != other.run_id


def read_identity(replies: Sequence[Any]) -> Identity:
    """The identity in the replies to ROLE and `INFO server`.

    Raises:
        ConnectionLost: the number of replies is not two.
    """
    if len(replies) != len(IDENTIFY):
        raise ConnectionLost(f"{len(replies)} replies to {len(IDENTIFY)} commands")
    role, info = replies
    return Identity(read_run_id(info), read_role(role))


def read_role(reply: Any) -> str:
    """The role in a reply to ROLE; "" if the reply is an error or malformed."""
    if isinstance(reply, list) and reply and isinstance(reply[0], bytes):
        return reply[0].decode(errors="replace")
    return ""


def read_run_id(reply: Any) -> str:
    """The run id in a reply to `INFO server`; "" if the reply is an error or malformed."""
    found = re.search(rb"run_id:(\w+)", reply) if isinstance(reply, bytes) else None
    return found[1].decode() if found else ""


class RefusalBackoff(Backoff):
    """When a command that the server refused may be sent again."""

    FIRST_SECONDS = 1.0
    CAP_SECONDS = 30.0

    def __init__(self) -> None:
        super().__init__()
        self._until: float | None = None

    @property
    def over(self) -> bool:
        """Whether the command may be sent now."""
        return self._until is None or asyncio.get_running_loop().time() >= self._until

    def refused(self, error: ReplyError) -> float:
        """Note a refusal; returns the seconds until the command may be sent again."""
        if str(error).startswith(NOT_NOW):
            return 0.0
        seconds = self.increase()
        self._until = asyncio.get_running_loop().time() + seconds
        return seconds

    def succeeded(self) -> None:
        """Note that the server answered the command."""
        self.reset()
        self._until = None


class IdentityCheck:
    """Asks the servers of successive connections for their role and, if unknown, their run id."""

    def __init__(self) -> None:
        self._role, self._info = RefusalBackoff(), RefusalBackoff()

    def commands(self, identity: Identity) -> list[tuple[bytes, ...]]:
        """The commands to send now, 0 to 2.

        Args:
            identity: the known part of the server's identity.
        """
        commands: list[tuple[bytes, ...]] = []
        if self._role.over:
            commands.append(ROLE)
        if not identity.run_id and self._info.over:
            commands.append(INFO)
        return commands

    def updated(
        self, identity: Identity, commands: Sequence[tuple[bytes, ...]], replies: Sequence[Any]
    ) -> Identity:
        """The identity after the replies to `commands`; a malformed role changes nothing."""
        for command, reply in zip(commands, replies, strict=True):
            backoff = self._role if command is ROLE else self._info
            if isinstance(reply, ReplyError):
                backoff.refused(reply)
                continue
            backoff.succeeded()
            if command is ROLE:
                identity = identity._replace(role=read_role(reply) or identity.role)
            else:
                identity = identity._replace(run_id=read_run_id(reply))
        return identity
