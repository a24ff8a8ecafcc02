"""Failures of connecting and of the handshake, as errors that name the fix and hold no secret."""

from __future__ import annotations

import asyncio

from ...errors import AuthError, BrokerError, ConfigurationError, ConnectError
from ...redaction import without_frames
from ...url import BrokerURL
from .addresses import reason
from .parser import ConnectionLost

__all__ = ["Refused", "connect_error"]


class Refused(Exception):
    """The server refused a command of the handshake; `str()` is its error without secrets.

    Attributes:
        command: such as "HELLO" or "CLIENT SETNAME".
        of_credentials: the credentials are missing or wrong.
        temporary: the server refuses all commands now and may accept them soon.
    """

    def __init__(
        self, command: str, said: str, *, of_credentials: bool, temporary: bool = False
    ) -> None:
        super().__init__(said)
        self.command = command
        self.of_credentials = of_credentials
        self.temporary = temporary


def connect_error(url: BrokerURL, where: str, exc: Exception) -> ConnectError:
    """The error of a failed attempt to connect, as a ConnectError without secrets."""
    if isinstance(exc, ConnectError):
        return without_frames(exc)
    if isinstance(exc, BrokerError):
        return ConnectError(url, exc.problem)
    if isinstance(exc, ConfigurationError):
        problem = str(exc).removeprefix(f"{url}: ")
        return ConnectError(url, f"cannot connect: {where}: {problem}")
    if isinstance(exc, Refused):
        return _refusal(url, where, exc)
    detail = reason(exc)
    if isinstance(exc, ConnectionLost):
        return ConnectError(url, f"cannot connect: {where}: {detail}")
    if isinstance(exc, asyncio.TimeoutError) and not str(exc):
        detail = f"no answer in {url.options.connect_timeout_seconds:g} s"
        if url.scheme.startswith("rediss") or "serverless" in url.scheme:
            detail += " (a server without TLS would not answer this)"
    if isinstance(exc, (OSError, asyncio.TimeoutError)):
        return ConnectError(
            url, f"cannot connect: {where}: {detail}; is the server running and reachable?"
        )
    # A bug here or in the driver: name the place, because the traceback is not kept.
    frame = exc.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    place = "" if frame is None else f" at {frame.tb_frame.f_code.co_name}:{frame.tb_lineno}"
    return ConnectError(url, f"cannot connect: {where}: {type(exc).__name__}{place}")


def _refusal(url: BrokerURL, where: str, refused: Refused) -> ConnectError:
    if refused.of_credentials:
        auth = dict(url.extra).get("auth", "url")
        if auth != "url":
            problem = f"the server refused the credentials of auth={auth}: {refused}"
        elif not (url.password or url.driver_options.keys() & {"password", "credential_provider"}):
            problem = (
                f"the server wants a password: write {url.scheme}://:password@..., or "
                "user:password@"
            )
        else:
            problem = f"the server refused the credentials: {refused}"
        return AuthError(url, f"{problem} ({where})")
    if str(refused).startswith("NOPERM"):
        rule = refused.command.lower().replace(" ", "|")
        return ConnectError(
            url,
            f"the user may not run {refused.command}, which this URL needs: add +{rule} to its ACL "
            f"rules: {refused} ({where})",
        )
    hint = ""
    if refused.command == "HELLO" and not refused.temporary:
        hint = ": leave the option protocol out, or write protocol=2"
    return ConnectError(
        url, f"the server refused the handshake, {refused.command}: {refused} ({where}){hint}"
    )
