"""`redis+sentinel://s1,s2,s3/service/db` and its other spellings: a primary named by sentinels.

The broker has one `Node`. Each new connection first asks the sentinels for the primary. If they
name another primary later, both connections to the former one are dropped.
"""

from __future__ import annotations

import asyncio

from ..broker import Report, Sink
from ..errors import ConfigurationError
from ..url import Address, BrokerURL
from .client.connection import Connection
from .client.connector import Connector, discard
from .client.driver_options import database
from .client.sentinels import SENTINEL_OPTIONS, Sentinels
from .redis import SingleNodeBroker

__all__ = ["SentinelBroker"]


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
        self._openings: set[asyncio.Future[Connection]] = set()
        super().__init__(
            url,
            sink,
            open_connection=self._open,
            max_age_seconds=self._connector.max_age_seconds,
        )

    async def _open(self) -> Connection:
        while True:
            address = await self._sentinels.primary()
            opening = asyncio.ensure_future(self._connector.open(address, need_primary=True))
            self._openings.add(opening)
            try:
                await asyncio.wait([opening])
            except BaseException:
                opening.add_done_callback(discard)
                opening.cancel()
                await asyncio.wait([opening])
                raise
            finally:
                self._openings.discard(opening)
            # No await between this check and the use: a switch must find the connection in use.
            if not opening.cancelled() and self._sentinels.named == address:
                return opening.result()
            opening.add_done_callback(discard)

    def _on_switch(self, address: Address) -> None:
        for opening in self._openings:
            opening.cancel()  # A frozen primary would use up the whole timeout.
        self._node.reset(f"the sentinels name another primary, {address}")

    def _where(self) -> str:
        return str(self._sentinels.named)

    async def inspect(self) -> Report:
        """Ask the sentinels and the primary; facts that they refuse to tell are left out."""
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
