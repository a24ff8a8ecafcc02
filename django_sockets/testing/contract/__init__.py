"""What every broker must do, as pytest classes that run on any backend by its URL.

    class TestMyBroker(BrokerContract):
        url = "mybroker://localhost:1234"
        waivers = {"test_aclose_leaves_nothing_behind": "why that cannot be"}

They need pytest and pytest-asyncio. Override the fixture `broker_url` where the URL is known only
at run time. `ServerContract` and `NetworkContract` need a server that can be hurt: the fixture
`server`, a `ServerControl`. A test that cannot hold for a backend is waived by its name with a
reason, and reported as a skip. For assertions that explain themselves, say
`pytest.register_assert_rewrite("django_sockets.testing.contract")` in your conftest.

The tests go through the hub, because that is where users meet a broker, or to the bare broker where
the promise is its own. They wait for events, never for time to pass.
"""

from .base import ContractTests
from .content import ContentContract
from .control import CacheControl, ServerControl
from .crash import CrashContract
from .delivery import DeliveryContract
from .lifetime import LifetimeContract
from .loss import LossContract
from .network import NetworkContract
from .subscribing import SubscribingContract
from .topologies import ClusterControl, HostsControl, SentinelControl, ServerlessControl
from .trouble import TroubleContract

__all__ = [
    "BrokerContract",
    "CacheControl",
    "ClusterControl",
    "ContractTests",
    "CrashContract",
    "HostsControl",
    "NetworkContract",
    "SentinelControl",
    "ServerContract",
    "ServerControl",
    "ServerlessControl",
    "TroubleContract",
]


class BrokerContract(
    DeliveryContract, SubscribingContract, ContentContract, LossContract, LifetimeContract
):
    """The promises of a backend whose server is well."""


class ServerContract(CrashContract, TroubleContract):
    """The promises of a backend whose server fails."""
