"""What a serverless cache looks like from outside, for the length of a test session.

    with ServerlessEmulation() as cache:
        open_hub(cache.url)

TLS always; the cluster protocol, with one node that has all slots and names an address that cannot
be reached; no patterns, no CONFIG, no scripts without declared keys. After ElastiCache Serverless;
what others do differently is not here. For tests, of this library and of applications. All calls
block: use `asyncio.to_thread` beside an event loop.
"""

from __future__ import annotations

import collections
import socket
import sys
from pathlib import Path
from urllib.parse import quote

from . import front
from .census import count_channels, count_connections, until
from .directives import CA_FILE, certificates
from .ports import HOST, free_port
from .processes import GuardedProcess, OwnDirectory, Startable
from .servers import CacheServer, ServerUnavailable, ValkeyServer
from .slots import SLOTS

__all__ = ["ServerlessEmulation"]

WAIT_SECONDS = 20.0
UNREACHABLE = "10.255.255.1"


class ServerlessEmulation(Startable):
    """A TLS endpoint before one cluster node.

    Args:
        server_class: what the node is.
        username, password: as of `CacheServer`.
        max_connection_age_seconds: the endpoint closes what is older, as managed services do once
            in hours; None: never.

    Attributes:
        node: the server behind the endpoint. Its own address is for tests only.

    Raises:
        ServerUnavailable: as `CacheServer` with TLS.
    """

    def __init__(
        self,
        server_class: type[CacheServer] = ValkeyServer,
        *,
        username: str | None = None,
        password: str | None = None,
        max_connection_age_seconds: float | None = None,
    ) -> None:
        try:
            self._certificates = certificates()
        except ImportError:
            raise ServerUnavailable("no certificates for TLS: run pip install trustme") from None
        self.port = 0
        self._age_seconds = max_connection_age_seconds or 0.0
        self._directory: OwnDirectory | None = None
        self._front: GuardedProcess | None = None
        config = {
            "cluster-enabled": "yes",
            "cluster-port": str(free_port()),
            "cluster-announce-ip": UNREACHABLE,
        }
        self.node = server_class(username=username, password=password, config=config)

    # Life

    def start(self) -> None:
        """Start, or start again after `kill` at the same address; about 2.3 s.

        Raises:
            RuntimeError: a part did not start, with the end of its log.
            TimeoutError: it did not begin to work.
        """
        self.node.start()
        if "cluster_slots_assigned:0" in self.node.execute("CLUSTER", "INFO"):
            self.node.execute("CLUSTER", "ADDSLOTSRANGE", 0, SLOTS - 1)
        self._start_front()
        until(self._ok, WAIT_SECONDS, "the cluster is not ok")

    def _start_front(self) -> None:
        if self._directory is None:
            self._directory = OwnDirectory()
            for name, pem in self._certificates.items():
                (self._directory.path / name).write_bytes(pem)
        self.port = self.port or free_port()
        words = [str(self.port), str(self.node.port), str(self._age_seconds)]
        program = Path(front.__file__).resolve()
        process = GuardedProcess([sys.executable, "-I", str(program), *words], self._directory.path)
        self._front = process

        def listens() -> bool:
            if not process.running:
                raise RuntimeError(f"the endpoint did not start:\n{process.log_tail()}")
            with socket.socket() as probe:
                return probe.connect_ex((HOST, self.port)) == 0

        until(listens, WAIT_SECONDS, "the endpoint does not listen")

    def kill(self) -> None:
        """End it without a warning, endpoint and node; `start` brings it back."""
        if self._front is not None:
            self._front.kill()
            self._front = None
        self.node.kill()

    def stop(self) -> None:
        """End it for good; idempotent."""
        self.kill()
        self.node.stop()
        if self._directory is not None:
            self._directory.remove()
            self._directory = None

    def pause(self) -> None:
        """Stop it where it is: connections stay open, nothing answers until `resume`."""
        if self._front is None:
            raise RuntimeError("the endpoint is not running")
        self._front.pause()
        self.node.pause()

    def resume(self) -> None:
        """Let it go on."""
        if self._front is None:
            raise RuntimeError("the endpoint is not running")
        self.node.resume()
        self._front.resume()

    def restore(self) -> None:
        """Let it run, whatever was done to it."""
        if self._front is None or not self._front.running or not self.node.running:
            self.kill()
            self.start()
        elif self._front.paused or self.node.paused:
            self.resume()
        until(self._ok, WAIT_SECONDS, "the cluster is not ok")

    # Facts

    @property
    def url(self) -> str:
        """The broker URL of the endpoint, by the name in its certificate."""
        user = self.node.url.partition("://")[2].rpartition("@")[0]
        where = f"{user}@localhost:{self.port}" if user else f"localhost:{self.port}"
        return f"redis+serverless://{where}?tls_ca_file={quote(str(self.tls_ca_file))}"

    @property
    def tls_ca_file(self) -> Path:
        """The certificate of the authority that clients have to trust."""
        return self._folder / CA_FILE

    @property
    def refused(self) -> collections.Counter[str]:
        """How often each command was refused, since the start."""
        log = self._folder / front.REFUSED_FILE
        return collections.Counter(log.read_text().split() if log.exists() else [])

    def connections(self) -> int:
        """How many client connections have reached the node, without this object's own."""
        return count_connections([self.node])

    def channels(self) -> int:
        """How many of the users' channels have a subscription, sharded or not."""
        return count_channels([self.node])

    # Insides

    @property
    def _folder(self) -> Path:
        if self._directory is None:
            raise RuntimeError("the endpoint is not started")
        return self._directory.path

    def _ok(self) -> bool:
        return "cluster_state:ok" in self.node.execute("CLUSTER", "INFO")
