"""Reads the history of channels over the publishing connections, outside of the stream."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeAlias

from ...errors import BrokerClosed, ConnectError, HistoryError
from ...history import HistoryReply, HistoryRule, Start
from ...url import Address, BrokerURL
from .commands import slot_of
from .history_scripts import READ, history_reply, read_command
from .parser import ReplyError
from .pipeline import NotSent, OutcomeUnknown
from .routes import Route, asked_at
from .scripts import is_missing, run_scripts
from .subscription_state import ELSEWHERE

__all__ = ["HistoryQueries"]

ATTEMPTS = 5
RETRY_SECONDS = 0.05
"""Pause before the only server is asked again."""

Read: TypeAlias = tuple[bytes, Start, HistoryRule]
"""The server-side name of a channel, where to begin, and its rule."""


class HistoryQueries:
    """Reads channels at the servers that own their slots. Repeating a read does no harm.

    Args:
        route_for: returns the route of a slot, or None while its owner is unknown.
        route_at: returns the route of a server, to follow an ASK error; None for a single server.
        refresh: returns after the slot map was refreshed; raises ConnectError.
    """

    def __init__(
        self,
        url: BrokerURL,
        *,
        route_for: Callable[[int], Route | None],
        route_at: Callable[[Address], Route] | None = None,
        refresh: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._url = url
        self._route_for = route_for
        self._route_at = route_at
        self._refresh = refresh

    async def read(
        self, reads: Mapping[str, Read], messages: int, max_bytes: int
    ) -> dict[str, HistoryReply]:
        """See `SupportsHistory.read_history`."""
        loop = asyncio.get_running_loop()
        give_up = loop.time() + self._url.options.publish_timeout_seconds
        commands = {
            channel: read_command(name, start, rule, messages, max_bytes)
            for channel, (name, start, rule) in reads.items()
        }
        found: dict[str, HistoryReply] = {}
        problem = "the server did not answer in time"
        for attempt in range(ATTEMPTS):
            left = [channel for channel in commands if channel not in found]
            groups: dict[Route, list[str]] = {}
            for channel in left:
                route = self._route_for(slot_of(reads[channel][0]))
                if route is not None:
                    groups.setdefault(route, []).append(channel)
            answers = await asyncio.gather(
                *(
                    self._ask(route, {name: commands[name] for name in group})
                    for route, group in groups.items()
                )
            )
            final = False
            for answered, trouble, passing in answers:
                found.update(answered)
                problem = trouble or problem
                final = final or (trouble is not None and not passing)
            if len(found) == len(commands):
                return {channel: found[channel] for channel in commands}
            if final or attempt == ATTEMPTS - 1 or loop.time() > give_up:
                break
            try:
                await self._pause()
            except ConnectError as exc:
                problem = exc.problem
                break
        left = [channel for channel in commands if channel not in found]
        raise HistoryError(self._url, problem, channels=left)

    async def _pause(self) -> None:
        if self._refresh is None:
            await asyncio.sleep(RETRY_SECONDS)
        else:
            await self._refresh()

    async def _ask(
        self, route: Route, commands: Mapping[str, tuple[bytes, ...]]
    ) -> tuple[dict[str, HistoryReply], str | None, bool]:
        """Ask one server for 1..n channels.

        Returns:
            The replies, a problem with the others, and whether asking again makes sense.
        """
        try:
            replies = await run_scripts(route.pipeline, READ, list(commands.values()))
        except BrokerClosed:
            if self._refresh is None:
                raise
            return {}, "the server has left the cluster", True
        except NotSent as exc:
            return {}, str(exc), self._refresh is not None
        except OutcomeUnknown as exc:
            return {}, str(exc), True
        found: dict[str, HistoryReply] = {}
        problem, passing = None, True
        for (channel, command), answer in zip(commands.items(), replies, strict=True):
            reply = await self._redirected(route, command, answer)
            parsed = None if isinstance(reply, ReplyError) else history_reply(reply)
            if parsed is not None:
                found[channel] = parsed
                continue
            problem = "the reply is malformed"
            if isinstance(reply, ReplyError):
                problem = f"the server refused to read: {reply}"
                passing = passing and (str(reply).startswith(ELSEWHERE) or is_missing(reply))
                if str(reply).startswith("READONLY"):
                    route.pipeline.demoted()
                    passing = True
            else:
                passing = False
        return found, problem, passing

    async def _redirected(self, route: Route, command: tuple[bytes, ...], answer: Any) -> Any:
        """Follow an ASK error; other answers are returned unchanged."""
        if not isinstance(answer, ReplyError) or self._route_at is None:
            return answer
        target = asked_at(answer, route.address)
        if target is None:
            return answer
        pipeline = self._route_at(target).pipeline
        try:
            return (await pipeline.submit([READ.load, (b"ASKING",), command]))[2]
        except (NotSent, OutcomeUnknown, BrokerClosed):
            return answer
