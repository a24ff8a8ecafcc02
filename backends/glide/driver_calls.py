"""Single calls of valkey-glide: PING and ROLE, and the meaning of the driver's errors."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from ..client.identity import read_role
from ..client.parser import ReplyError
from ..client.pipeline import OutcomeUnknown

if TYPE_CHECKING:
    from glide import GlideClient, GlideClusterClient

__all__ = ["ask_roles", "await_any_pong", "is_authentication", "outcome_of"]

CLUSTER_PINGS = 4
_SERVER_SAID = "An error was signalled by the server: - "
_REPLY_CODES = {"PermissionDenied": "NOPERM"}


async def ask_roles(client: GlideClient | GlideClusterClient) -> list[str]:
    """Ask each server that receives messages for its role."""
    import glide

    if not isinstance(client, glide.GlideClusterClient):
        return [read_role(await client.custom_command([b"ROLE"]))]
    replies = await client.custom_command([b"ROLE"], glide.AllPrimaries())
    return [read_role(reply) for reply in replies.values()] if isinstance(replies, dict) else []


async def await_any_pong(client: GlideClient | GlideClusterClient) -> None:
    """Wait for the reply to a PING.

    On a cluster, several nodes are asked concurrently, because one may be silent; the first reply
    counts. An error reply counts as well, except an authentication error.
    """
    import glide

    if not isinstance(client, glide.GlideClusterClient):
        await _ping(client.custom_command([b"PING"]))
        return
    pings = [
        asyncio.ensure_future(_ping(client.custom_command([b"PING"], glide.RandomNode())))
        for _ in range(CLUSTER_PINGS)
    ]
    try:
        for ping in asyncio.as_completed(pings):
            try:
                await ping
            except glide.GlideError as exc:
                error = exc
            else:
                return
        raise error
    finally:
        for task in pings:
            task.cancel()
        await asyncio.gather(*pings, return_exceptions=True)


async def _ping(answer: Coroutine[Any, Any, Any]) -> None:
    import glide

    try:
        await answer
    except glide.RequestError as exc:
        if is_authentication(exc) or not isinstance(outcome_of(exc), ReplyError):
            raise


def outcome_of(error: Exception) -> Exception:
    """The outcome of a message for which the driver reported an error."""
    text = str(error)
    if text.startswith(_SERVER_SAID):
        code, _, rest = text.removeprefix(_SERVER_SAID).partition(": ")
        return ReplyError(f"{_REPLY_CODES.get(code, code)} {rest}".rstrip())
    return OutcomeUnknown(f"connection lost: {text.removesuffix('. Will attempt to reconnect')}")


def is_authentication(error: Exception) -> bool:
    words = ("WRONGPASS", "NOAUTH", "AuthenticationFailed", "Password authentication failed")
    return any(word in str(error) for word in words)
