"""One valkey-glide client, shared by all publishers with the same configuration.

A client is used as long as it answers. A client that lost its connection, or that left a request
without a reply, is replaced: the driver would wait for its server without an error, and it never
notices a silent server. All of this runs on the glide thread (`lease`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from ...deadlines import with_deadline
from ...errors import AuthError, ConnectError
from ...log import LogThrottle
from ...redaction import mask
from ...url import BrokerURL
from ..client.connection import Connection, ReplyError
from ..client.identity import PRIMARY, RefusalBackoff
from ..client.pipeline import NotSent, OutcomeUnknown
from ..client.supervision import Supervisor
from .config import GlideConnection, client_maker
from .driver_calls import ask_roles, await_any_pong, is_authentication, outcome_of

if TYPE_CHECKING:
    from glide import GlideClient, GlideClusterClient

__all__ = ["Done", "OpenConnection", "SharedClient"]

logger = logging.getLogger("django_sockets")

Done = Callable[[Sequence[Exception | None]], None]
"""Called with one outcome for each message, on the glide thread."""
OpenConnection = Callable[[], Coroutine[Any, Any, Connection]]

GUARD_SECONDS = 1.0
"""How long we wait beyond the driver's own deadline."""
_HINT = "is the server running and reachable, and are the credentials right?"


class _LiveClient:
    """A client of the driver, and the number of requests that use it."""

    def __init__(self, client: GlideClient | GlideClusterClient) -> None:
        self.client = client
        self.requests = 0
        self.retired = False
        self.watch: asyncio.Task[None] | None = None

    async def retire(self) -> None:
        """Close it after its last request has ended."""
        self.retired = True
        if not self.requests:
            await self.close()

    async def close(self) -> None:
        """Close it now."""
        if self.watch is not None:
            self.watch.cancel()
            await asyncio.wait([self.watch])
        await self.client.close()


class SharedClient:
    """The client of one configuration. Except for `__init__`, it runs on the glide thread."""

    def __init__(
        self,
        url: BrokerURL,
        connection: GlideConnection,
        sharded: bool,
        open_connection: OpenConnection | None,
    ) -> None:
        self.url = url
        self._sharded = sharded
        self._cluster = connection.cluster
        self._make = client_maker(url, connection)
        self._password = connection.password
        self._open_connection = open_connection
        self._throttle = LogThrottle(logger, url.options.log_interval_seconds)
        self._supervisor = Supervisor(url)
        self._live: _LiveClient | None = None
        self._connecting: asyncio.Task[_LiveClient] | None = None
        self._retiring: asyncio.Task[None] | None = None

    async def publish(
        self, messages: Sequence[tuple[bytes, bytes]], seconds: float
    ) -> Sequence[Exception | None]:
        started = asyncio.get_running_loop().time()
        try:
            live = self._live or await self._connected(seconds)
        except ConnectError as exc:
            self._throttle.log(
                logging.WARNING,
                "connect",
                "cannot publish: %s",
                exc,
                extra={"broker": self.url, "reason": exc},
            )
            refusal = NotSent(exc.problem)
            refusal.__cause__ = exc
            return [refusal] * len(messages)
        seconds = max(0.001, seconds - (asyncio.get_running_loop().time() - started))
        live.requests += 1
        try:
            return await self._execute(live, messages, seconds)
        finally:
            live.requests -= 1
            if live.retired:
                await live.retire()

    async def aclose(self) -> None:
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.wait([self._connecting])
        live, self._live = self._live, None
        if live is not None:
            await live.close()  # Its last publisher has ended all pending messages.

    async def _execute(
        self, live: _LiveClient, messages: Sequence[tuple[bytes, bytes]], seconds: float
    ) -> Sequence[Exception | None]:
        import glide

        call: Coroutine[Any, Any, list[Any] | None]
        milliseconds = max(1, int(seconds * 1000))
        if self._cluster:
            cluster_batch = glide.ClusterBatch(is_atomic=False)
            for name, payload in messages:
                cluster_batch.publish(payload, name, self._sharded)
            options = glide.ClusterBatchOptions(
                timeout=milliseconds,
                retry_strategy=glide.BatchRetryStrategy(
                    retry_server_error=False, retry_connection_error=False
                ),
            )
            call = live.client.exec(cluster_batch, False, options)
        else:
            batch = glide.Batch(is_atomic=False)
            for name, payload in messages:
                if self._sharded:
                    batch.custom_command([b"SPUBLISH", name, payload])
                else:
                    batch.publish(payload, name)
            call = live.client.exec(batch, False, glide.BatchOptions(timeout=milliseconds))
        try:
            replies: Any = await with_deadline(seconds + GUARD_SECONDS, call)
            count = len(replies) if isinstance(replies, list) else 0
            if count != len(messages):
                raise glide.ConnectionError(f"{count} replies to {len(messages)} messages")
        except (glide.TimeoutError, asyncio.TimeoutError):
            reason = f"no reply within {seconds:.3g} s"
        except glide.GlideError as exc:
            outcome = outcome_of(exc)
            if isinstance(outcome, ReplyError):
                return [outcome] * len(messages)
            reason = str(outcome)
        except Exception as exc:
            self._supervisor.failed("publishing", exc)
            reason = "the driver failed"
        else:
            outcomes = [
                outcome_of(reply) if isinstance(reply, Exception) else None for reply in replies
            ]
            lost = next((o for o in outcomes if isinstance(o, OutcomeUnknown)), None)
            if lost is not None:
                self._give_up(live, str(lost))
            return outcomes
        self._give_up(live, reason)
        return [OutcomeUnknown(reason)] * len(messages)

    def give_up(self, reason: str) -> None:
        """Replace the present client, if there is one."""
        if self._live is not None:
            live = self._live
            self._give_up(live, reason)
            if live.retired and not live.requests:
                self._retiring = asyncio.create_task(live.retire())

    def _give_up(self, live: _LiveClient, reason: str) -> None:
        """Replace a client after a failure.

        On a cluster mostly one node has failed. The client serves the other nodes while its
        successor connects, which takes long if a node is silent.
        """
        if self._live is not live:
            return
        self._throttle.log(
            logging.WARNING,
            "lost",
            "%s: publishing was cut off: %s",
            self.url,
            reason,
            extra={"broker": self.url, "reason": reason},
        )
        if self._cluster:
            self._start_to_connect()
        else:
            self._live = None
            live.retired = True  # The last request to end closes it.

    async def _connected(self, seconds: float) -> _LiveClient:
        task = self._start_to_connect()
        await asyncio.wait([task], timeout=seconds)
        if not task.done():
            raise ConnectError(self.url, f"no connection within {seconds:.3g} s: {_HINT}")
        if task.cancelled():
            raise ConnectError(self.url, "closed")
        error = task.exception()
        if error is not None and not isinstance(error, ConnectError):
            raise ConnectError(self.url, f"valkey-glide failed: {error!r}") from error
        return task.result()

    def _start_to_connect(self) -> asyncio.Task[_LiveClient]:
        if self._connecting is None:
            self._connecting = asyncio.create_task(self._connect())
            self._connecting.add_done_callback(self._has_connected)
        return self._connecting

    def _has_connected(self, task: asyncio.Task[_LiveClient]) -> None:
        self._connecting = None
        if task.cancelled():
            return
        error = task.exception()
        if error is not None:
            if isinstance(error, Exception) and not isinstance(error, ConnectError):
                self._supervisor.failed("connecting to publish", error)
            return
        old, self._live = self._live, task.result()
        work = self._supervisor.keep("watching the server", partial(self._watch, self._live))
        self._live.watch = asyncio.create_task(work, name="django_sockets glide watch")
        if old is not None:
            self._retiring = asyncio.create_task(old.retire())

    async def _connect(self) -> _LiveClient:
        """Connect, and wait until the server answers.

        Raises:
            ConnectError, AuthError: nothing was published.
        """
        import glide

        if self._open_connection is not None:
            (await self._open_connection()).abort()
        try:
            client = await self._make()
            try:
                # The client connects with its first command.
                await with_deadline(
                    self.url.options.connect_timeout_seconds, await_any_pong(client)
                )
            except BaseException:
                await client.close()
                raise
            return _LiveClient(client)
        except (asyncio.TimeoutError, glide.TimeoutError):
            error = ConnectError(self.url, f"no connection in time: {_HINT}")
        except Exception as exc:
            said = mask(str(exc), self._password)
            if isinstance(exc, glide.GlideError) and is_authentication(exc):
                error = AuthError(self.url, f"the server refused the credentials: {said}")
            else:
                error = ConnectError(self.url, f"valkey-glide cannot connect: {said}")
        # Raised here, without the frames of the driver, which hold the password.
        raise error

    async def _watch(self, live: _LiveClient) -> None:
        """Ask for the server's role twice in `dead_peer_seconds`, while the client is in use.

        A replica accepts messages as well and delivers them to its own subscribers only.
        """
        import glide

        backoff = RefusalBackoff()
        while self._live is live:
            await asyncio.sleep(self.url.options.dead_peer_seconds / 2)
            if not backoff.over:
                continue
            try:
                roles = await ask_roles(live.client)
            except glide.GlideError as exc:
                outcome = outcome_of(exc)
                if isinstance(outcome, ReplyError):
                    backoff.refused(outcome)
                continue  # The next publish notices a connection that does not answer.
            backoff.succeeded()
            if any(role not in (PRIMARY, "") for role in roles) and self._live is live:
                self.give_up("the server is a replica now")
