"""`redis+serverless://endpoint` (also spelled with `valkey` or `rediss`): a serverless cache.

ElastiCache Serverless and similar services always use TLS, have the commands of a cluster, and have
one endpoint that owns all slots. The slot map is not used, because only the endpoint's own name has
to be reachable. The broker is one `Node` with sharded pub/sub.
"""

from __future__ import annotations

from functools import partial

from ..broker import Report, Sink
from ..errors import ConfigurationError
from ..url import BrokerURL
from .client.commands import SHARDED
from .client.connector import Connector
from .client.driver_options import DRIVER_OPTIONS
from .client.inspection import NodeFacts, describe
from .glide.publisher import glide_publisher
from .redis import SingleNodeBroker

__all__ = ["ServerlessBroker"]


class ServerlessBroker(SingleNodeBroker):
    """A broker on a serverless endpoint. See `django_sockets.broker` for the contract."""

    def __init__(self, url: BrokerURL, sink: Sink) -> None:
        if len(url.addresses) != 1:
            raise ConfigurationError(
                f"{url}: {url.scheme}:// takes the one endpoint of the cache, not "
                f"{len(url.addresses)} hosts"
            )
        if url.path not in ("", "0"):
            raise ConfigurationError(
                f"{url}: a serverless cache has no databases: leave {url.path!r} out"
            )
        connector = Connector(url, DRIVER_OPTIONS, always_tls=True)
        open_connection = partial(connector.open, url.addresses[0])
        super().__init__(
            url,
            sink,
            open_connection=open_connection,
            pubsub=SHARDED,
            publisher=(
                # The driver's cluster client would follow the slot map, whose addresses may be
                # unreachable.
                glide_publisher(connector, sharded=True, open_connection=open_connection)
                if connector.glide
                else None
            ),
            max_age_seconds=connector.max_age_seconds,
        )

    def _describe(self, facts: NodeFacts) -> Report:
        report = describe(self.url, [facts], "one serverless endpoint")
        if facts.sharded is False:
            report.problem = "the server has no sharded pub/sub (SSUBSCRIBE): use rediss://"
        return report
