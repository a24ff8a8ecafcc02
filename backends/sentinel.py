"""`redis+sentinel://s1,s2,s3/service/db` and its other spellings: a primary named by sentinels.

A `Node` like that of one server, except that each connect asks the sentinels anew who the primary
is. Every sentinel has a connection that is asked and one that hears `+switch-master`; on that, or
when another answer is found, both connections to the former primary are dropped.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from ..broker import Report, Sink
from ..errors import AuthError, ConfigurationError, ConnectError
from ..log import LogThrottle
from ..url import Address, BrokerURL
from .connector import Connector, database
from .credentials import Credentials
from .deadlines import first_answers
from .link import Link, ReplyError, discard
from .names import PLAIN
from .pipeline import NotSent, OutcomeUnknown, Pipeline
from .reader import Reader
from .redis import SingleNodeBroker

__all__ = ["SentinelBroker"]

logger = logging.getLogger("django_sockets")

DEFAULT_PORT = 26379
SENTINEL_OPTIONS = {
    "sentinel_username": "user name for the sentinels",
    "sentinel_password": "password for the sentinels; that of the URL is for the data nodes",
}
SWITCH = b"+switch-master"
GRACE_SECONDS = 0.05
"""How long others may take after the first sentinel's answer, which may not be the newest."""


class SentinelBroker(SingleNodeBroker):
    """A broker on the primary that sentinels name. See `django_sockets.broker`."""

    def __init__(self, url: BrokerURL, sink: Sink) -> None:
        service, _, number = url.path.partition("/")
        if not service or not url.addresses:
            raise ConfigurationError(
                f"{url}: write {url.scheme}://sentinel1,sentinel2,sentinel3/service, where the "
                "service is the name under which the sentinels watch the primary"
            )
        self._connector = Connector(url, SENTINEL_OPTIONS, database=database(url, number))
        self._sentinels = Sentinels(url, service, self._on_switch)
        super().__init__(
            url,
            sink,
            open_link=self._open,
            max_age_seconds=self._connector.max_age_seconds,
        )

    async def _open(self) -> Link:
        while True:
            address = await self._sentinels.primary()
            # A frozen primary would take the whole timeout, long after it was replaced.
            opening = asyncio.ensure_future(self._connector.open(address, need_primary=True))
            switched = asyncio.ensure_future(self._sentinels.switched.wait())
            try:
                await asyncio.wait([opening, switched], return_when=asyncio.FIRST_COMPLETED)
                if self._sentinels.named == address:
                    return await opening
                opening.add_done_callback(discard)
            except BaseException:
                opening.add_done_callback(discard)
                raise
            finally:
                opening.cancel()
                switched.cancel()
                await asyncio.wait([opening, switched])

    def _on_switch(self, address: Address) -> None:
        self._node.reset(f"the sentinels name another primary, {address}")

    def _where(self) -> str:
        return str(self._sentinels.named)

    async def inspect(self) -> Report:
        """Ask the sentinels and the primary; what is not allowed to be asked is left out."""
        report = await super().inspect()
        answers, replicas = await self._sentinels.count()
        total = len(self.url.addresses)
        report.topology = (
            f"primary of {self._sentinels.service!r} with {replicas} replicas, named by {answers} "
            f"of {total} sentinels"
        )
        if total < 3:
            report.warnings.append(
                f"the URL names {total} sentinels: with fewer than three, losing one can end both "
                "failover and our way to the primary"
            )
        if answers < total:
            report.warnings.append(f"{total - answers} of {total} sentinels do not answer")
        if not replicas:
            report.warnings.append("the primary has no replica that could take over")
        return report

    async def aclose(self) -> None:
        """See `Broker.aclose`."""
        await super().aclose()
        await self._sentinels.aclose()


class _Answer(NamedTuple):
    """What a sentinel knows of the service; the higher epoch is the newer configuration."""

    epoch: int
    primary: Address
    replicas: int


class Sentinels:
    """Asks sentinels for the primary of one service, and hears when it changes.

    Args:
        service: the name under which they watch the primary.
        on_switch: called with the new primary when another one had been named before.

    Attributes:
        named: the primary that was named last.
        switched: set when another one is named; the next one has its own event.
    """

    def __init__(self, url: BrokerURL, service: str, on_switch: Callable[[Address], None]) -> None:
        self._url = url
        self.service = service
        self._on_switch = on_switch
        self.named: Address | None = None
        self.switched = asyncio.Event()
        extra = dict(url.extra)
        login = Credentials(extra.get("sentinel_username"), extra.get("sentinel_password"))
        connector = Connector(url, SENTINEL_OPTIONS, credentials=_Fixed(login))
        self._pipelines: list[Pipeline] = []
        self._readers: list[Reader] = []
        for address in url.addresses:
            where = Address(address.host, address.port or DEFAULT_PORT)
            open_link = partial(connector.open, where)
            self._pipelines.append(Pipeline(url, open_link))
            reader = Reader(url, self, self, open_link=open_link, probe=None, verbs=PLAIN)
            self._readers.append(reader)
        self._checking: asyncio.Task[None] | None = None
        self._throttle = LogThrottle(logger, url.options.log_interval_seconds)

    async def primary(self) -> Address:
        """The primary, by the newest answer of those that answer soon.

        Raises:
            ConnectError: no sentinel answers, or none knows the service.
            AuthError: they refuse the credentials.
        """
        for reader in self._readers:
            reader.want(self.service, SWITCH)
        answers, problems = await self._ask_all(GRACE_SECONDS)
        if not answers:
            raise self._worst(problems)
        newest = max(answers, key=lambda answer: answer.epoch)
        self._name(newest.primary)
        return newest.primary

    async def count(self) -> tuple[int, int]:
        """How many sentinels answer, and how many replicas they know."""
        seconds = self._url.options.connect_timeout_seconds
        answers, _ = await self._ask_all(seconds)
        return len(answers), max((answer.replicas for answer in answers), default=0)

    async def _ask_all(self, grace_seconds: float) -> tuple[list[_Answer], list[Exception]]:
        return await first_answers(
            [self._ask(pipeline) for pipeline in self._pipelines],
            self._url.options.connect_timeout_seconds,
            grace_seconds,
        )

    async def _ask(self, pipeline: Pipeline) -> _Answer:
        try:
            (reply,) = await pipeline.submit([(b"SENTINEL", b"MASTER", self.service.encode())])
        except (NotSent, OutcomeUnknown) as exc:
            raise (exc.__cause__ or ConnectError(self._url, str(exc))) from None
        if isinstance(reply, ReplyError):
            if str(reply).startswith("ERR unknown command"):
                raise ConnectError(
                    self._url, "the URL has to name sentinels, and this server is none"
                )
            raise ConnectError(
                self._url, f"the sentinels do not know the service {self.service!r}: {reply}"
            )
        facts = _facts(reply)
        return _Answer(
            epoch=int(facts.get(b"config-epoch", 0)),
            primary=Address(facts[b"ip"].decode(), int(facts[b"port"])),
            replicas=int(facts.get(b"num-slaves", 0)),
        )

    def _worst(self, problems: Sequence[Exception]) -> ConnectError:
        for problem in problems:
            if isinstance(problem, AuthError):
                return AuthError(
                    self._url,
                    "the sentinels refused the credentials: set the options sentinel_username and "
                    "sentinel_password",
                )
        unknown = [problem for problem in problems if "do not know" in str(problem)]
        for problem in [*unknown, *problems]:
            if isinstance(problem, ConnectError):
                return problem
        seconds = self._url.options.connect_timeout_seconds
        return ConnectError(self._url, f"no sentinel answers within {seconds:g} s")

    def _name(self, address: Address) -> None:
        former, self.named = self.named, address
        if former is not None and former != address:
            logger.info("%s: the primary is %s now", self._url, address)
            self.switched.set()
            self.switched = asyncio.Event()
            self._on_switch(address)

    # What the readers report: a sink and an owner

    async def deliver(self, batch: Sequence[tuple[str, bytes]]) -> None:
        """See `Sink`. The payload: service, former host and port, new host and port."""
        for _, payload in batch:
            service, _, _, host, port = payload.decode().split()
            if service == self.service:
                self._name(Address(host, int(port)))

    def granted(self, channel: str) -> str | None:
        """See `Owner`. What this sentinel said before we listened is unknown: ask."""
        if self._checking is None:
            loop = asyncio.get_running_loop()
            self._checking = loop.create_task(self._check(), name="django_sockets sentinels")
        return None

    async def _check(self) -> None:
        try:
            await self.primary()
        except ConnectError as exc:
            self._throttle.log(logging.WARNING, "sentinels", "cannot ask: %s", exc)
        finally:
            self._checking = None

    def lost(self, channels: Sequence[str], reason: str) -> None:
        """See `Sink` and `Owner`. Once it is granted again, we ask."""

    def displaced(self, channels: Sequence[str], error: ReplyError | None) -> None:
        """See `Owner`. No sentinel does that."""

    def refused(self, channel: str, error: ReplyError) -> None:
        """See `Owner`."""
        self._throttle.log(
            logging.WARNING,
            "refused",
            "%s: a sentinel does not let us listen to %s (%s): a new primary is noticed later",
            self._url,
            SWITCH.decode(),
            error,
        )

    def unreachable(self, channels: Sequence[str], error: ConnectError) -> None:
        """See `Owner`. The others are enough."""

    async def aclose(self) -> None:
        """Close every connection to the sentinels."""
        if self._checking is not None:
            self._checking.cancel()
            await asyncio.wait([self._checking])
        for reader in self._readers:
            await reader.aclose()
        for pipeline in self._pipelines:
            await pipeline.aclose()


class _Fixed:
    """Credentials that never change."""

    max_age_seconds: float | None = None

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials

    async def credentials(self) -> Credentials:
        return self._credentials


def _facts(reply: Any) -> Mapping[bytes, bytes]:
    """A map, or with RESP2 a list of names and values in turn."""
    if isinstance(reply, dict):
        return reply
    return dict(zip(reply[::2], reply[1::2], strict=True))
