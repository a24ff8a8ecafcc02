"""The contract of every broker, as pytest classes that test any backend by its URL.

    class TestMyBroker(BrokerContract):
        url = "mybroker://localhost:1234"
        waivers = {"test_aclose_leaves_nothing_behind": "the reason"}

They need pytest and pytest-asyncio. Override the fixture `broker_url` if the URL is only known at
run time. `ServerContract` and `NetworkContract` need a server that can be killed and paused: define
the fixture `server`, a `ServerControl`. To waive a test that a backend cannot pass, name it in
`waivers` with a reason; it is reported as a skip. For detailed assertion errors, call
`pytest.register_assert_rewrite("django_sockets.testing.contract")` in your conftest.

`HistoryContract` is for brokers with `SupportsHistory`, and `PresenceContract` and `LeaseContract`
for those with `SupportsPresence`; `PresenceFaultContract` needs a fixture `server` as well.

Most tests use a hub, because applications use brokers through hubs. The others use the broker
itself. The tests wait for events and not for a fixed time.
"""

from .base import ContractTests
from .content import ContentContract
from .control import CacheControl, ServerControl
from .crash import CrashContract
from .delivery import DeliveryContract
from .history import HistoryContract
from .leases import LeaseContract
from .lifetime import LifetimeContract
from .loss import LossContract
from .network import NetworkContract
from .presence import PresenceContract
from .presence_faults import PresenceFaultContract
from .queues import QueueContract
from .subscribing import SubscribingContract
from .topologies import ClusterControl, HostsControl, SentinelControl, ServerlessControl
from .trouble import TroubleContract

__all__ = [
    "BrokerContract",
    "CacheControl",
    "ClusterControl",
    "ContractTests",
    "CrashContract",
    "HistoryContract",
    "HostsControl",
    "LeaseContract",
    "NetworkContract",
    "PresenceContract",
    "PresenceFaultContract",
    "QueueContract",
    "SentinelControl",
    "ServerContract",
    "ServerControl",
    "ServerlessControl",
    "TroubleContract",
]


class BrokerContract(
    DeliveryContract,
    SubscribingContract,
    ContentContract,
    LossContract,
    LifetimeContract,
    QueueContract,
):
    """The promises of a backend while its server works."""


class ServerContract(CrashContract, TroubleContract):
    """The promises of a backend while its server fails."""
