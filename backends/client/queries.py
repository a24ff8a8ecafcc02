"""Reads channels over the publishing connections, outside of the stream."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from ...errors import BrokerClosed, ConnectError
from ...url import Address, BrokerURL
from .commands import slot_of
from .parser import ReplyError
from .pipeline import NotSent, OutcomeUnknown, Pipeline
from .routes import Route, asked_at
from .scripts import Script, is_missing, run_scripts
from .subscription_state import ELSEWHERE

__all__ = ["Queries", "Query", "Unanswered"]

ATTEMPTS = 5
RETRY_SECONDS = 0.05
"""Pause before the only server is asked again."""

Found = TypeVar("Found")


@dataclasses.dataclass(frozen=True)
class Query(Generic[Found]):
    """How channels are read.

    Attributes:
        parse: makes the result of a reply; raises ValueError if the reply is malformed.
        script: the script of the commands; None if they call no script.
    """

    parse: Callable[[Any], Found]
    script: Script | None = None


class Unanswered(Exception):
    """Some channels could not be read.

    Attributes:
        channels: these channels.
    """

    def __init__(self, problem: str, channels: list[str]) -> None:
        self.channels = channels
        super().__init__(problem)


class Queries:
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
        self, query: Query[Found], commands: Mapping[str, tuple[bytes, tuple[bytes, ...]]]
    ) -> dict[str, Found]:
        """Read 1..n channels, in one round trip per server if nothing has moved.

        Args:
            commands: channel -> its server-side name, and the command that reads it.

        Returns:
            The result of each channel, in the order of the commands.

        Raises:
            Unanswered: a server did not answer in `publish_timeout_seconds`, or refused.
            BrokerClosed: after `aclose`.
        """
        loop = asyncio.get_running_loop()
        give_up = loop.time() + self._url.options.publish_timeout_seconds
        found: dict[str, Found] = {}
        problem = "the server did not answer in time"
        for attempt in range(ATTEMPTS):
            left = [channel for channel in commands if channel not in found]
            groups: dict[Route, list[str]] = {}
            for channel in left:
                route = self._route_for(slot_of(commands[channel][0]))
                if route is not None:
                    groups.setdefault(route, []).append(channel)
            answers = await asyncio.gather(
                *(
                    self._ask(query, route, {name: commands[name][1] for name in group})
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
        raise Unanswered(problem, left)

    async def _pause(self) -> None:
        if self._refresh is None:
            await asyncio.sleep(RETRY_SECONDS)
        else:
            await self._refresh()

    async def _ask(
        self, query: Query[Found], route: Route, commands: Mapping[str, tuple[bytes, ...]]
    ) -> tuple[dict[str, Found], str | None, bool]:
        """Ask one server for 1..n channels.

        Returns:
            The replies, a problem with the others, and whether asking again makes sense.
        """
        try:
            replies = await _submit(route.pipeline, query.script, list(commands.values()))
        except BrokerClosed:
            if self._refresh is None:
                raise
            return {}, "the server has left the cluster", True
        except NotSent as exc:
            return {}, str(exc), self._refresh is not None
        except OutcomeUnknown as exc:
            return {}, str(exc), True
        found: dict[str, Found] = {}
        problem, passing = None, True
        for (channel, command), answer in zip(commands.items(), replies, strict=True):
            reply = await self._redirected(query.script, route, command, answer)
            if isinstance(reply, ReplyError):
                problem = f"the server refused to read: {reply}"
                passing = passing and (str(reply).startswith(ELSEWHERE) or is_missing(reply))
                if str(reply).startswith("READONLY"):
                    route.pipeline.demoted()
                    passing = True
                continue
            try:
                found[channel] = query.parse(reply)
            except ValueError as exc:
                problem, passing = str(exc), False
        return found, problem, passing

    async def _redirected(
        self, script: Script | None, route: Route, command: tuple[bytes, ...], answer: Any
    ) -> Any:
        """Follow an ASK error; other answers are returned unchanged."""
        if not isinstance(answer, ReplyError) or self._route_at is None:
            return answer
        target = asked_at(answer, route.address)
        if target is None:
            return answer
        pipeline = self._route_at(target).pipeline
        try:
            load = () if script is None else (script.load,)
            return (await pipeline.submit([*load, (b"ASKING",), command]))[-1]
        except (NotSent, OutcomeUnknown, BrokerClosed):
            return answer


async def _submit(
    pipeline: Pipeline, script: Script | None, commands: Sequence[tuple[bytes, ...]]
) -> list[Any]:
    if script is None:
        return await pipeline.submit(commands)
    return await run_scripts(pipeline, script, commands)
