"""An emulation of a serverless cache, as its clients see it, for tests.

    with ServerlessEmulation() as cache:
        open_hub(cache.url)

It follows ElastiCache Serverless: TLS only; the cluster protocol with one node, which has all slots
and names an address that cannot be reached; no patterns, no CONFIG, no scripts without declared
keys. Use it in tests of this library and of applications. All calls block: use `asyncio.to_thread`
on an event loop.
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

WAIT_SECONDS = 60.0
UNREACHABLE = "10.255.255.1"


class ServerlessEmulation(Startable):
    """A TLS endpoint in front of one cluster node.

    Args:
        server_class: the class of the node.
        username, password: as in `CacheServer`.
        max_connection_age_seconds: the endpoint closes older connections; managed services do this
            every few hours. Default: None, never.

    Attributes:
        node: the server behind the endpoint. Its own address is for tests only.

    Raises:
        ServerUnavailable: see `CacheServer` with TLS.
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
        """Start, or start again at the same address after `kill`. This takes about 2.3 s.

        Raises:
            RuntimeError: the node or the endpoint did not start; the message has the end of its
                log.
            TimeoutError: the cluster is not ok in time.
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
        """Kill endpoint and node (SIGKILL). `start` starts them again."""
        if self._front is not None:
            self._front.kill()
            self._front = None
        self.node.kill()

    def stop(self) -> None:
        """Stop endpoint and node. A repeated call has no effect."""
        self.kill()
        self.node.stop()
        if self._directory is not None:
            self._directory.remove()
            self._directory = None

    def pause(self) -> None:
        """Pause endpoint and node (SIGSTOP): connections stay open without answers."""
        if self._front is None:
            raise RuntimeError("the endpoint is not running")
        self._front.pause()
        self.node.pause()

    def resume(self) -> None:
        """Resume endpoint and node after `pause`."""
        if self._front is None:
            raise RuntimeError("the endpoint is not running")
        self.node.resume()
        self._front.resume()

    def restore(self) -> None:
        """Undo `kill` and `pause`, and wait until the cluster is ok."""
        if self._front is None or not self._front.running or not self.node.running:
            self.kill()
            self.start()
        elif self._front.paused or self.node.paused:
            self.resume()
        until(self._ok, WAIT_SECONDS, "the cluster is not ok")

    # Facts

    @property
    def url(self) -> str:
        """The broker URL of the endpoint, with the host name of its certificate."""
        user = self.node.url.partition("://")[2].rpartition("@")[0]
        where = f"{user}@localhost:{self.port}" if user else f"localhost:{self.port}"
        return f"redis+serverless://{where}?tls_ca_file={quote(str(self.tls_ca_file))}"

    @property
    def tls_ca_file(self) -> Path:
        """Path of the certificate of the authority that clients have to trust."""
        return self._folder / CA_FILE

    @property
    def refused(self) -> collections.Counter[str]:
        """Command -> how often it was refused since the start."""
        log = self._folder / front.REFUSED_FILE
        return collections.Counter(log.read_text().split() if log.exists() else [])

    def connections(self) -> int:
        """The number of client connections to the node, without those of this object."""
        return count_connections([self.node])

    def channels(self) -> int:
        """The number of users' channels that have a subscription, sharded or not."""
        return count_channels([self.node])

    # Internal

    @property
    def _folder(self) -> Path:
        if self._directory is None:
            raise RuntimeError("the endpoint is not started")
        return self._directory.path

    def _ok(self) -> bool:
        return "cluster_state:ok" in self.node.execute("CLUSTER", "INFO")
