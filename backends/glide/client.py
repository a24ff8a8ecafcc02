"""The valkey-glide clients of this process, on one thread with an event loop of its own.

valkey-glide 2.6 hands the replies of all its clients to the event loop that made the first one,
and is deaf once that loop is closed. So its loop is ours: the daemon thread `django_sockets glide`,
started by the first client and never stopped. After a fork the child leaves all of it alone and
starts its own.

A client is used as long as it answers. One that lost its connection or left a request without a
reply is replaced: the driver would wait for its server without saying so, and never notices one
that is silent. Only `glide` imports this module.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from ...errors import AuthError, ConnectError
from ...forks import after_fork_in_child
from ...log import LogThrottle
from ...os_threads import start_thread
from ...redaction import mask
from ...url import BrokerURL
from ..client.connection import Connection, ReplyError
from ..client.deadlines import with_deadline
from ..client.identity import PRIMARY, RefusalBackoff, read_role
from ..client.pipeline import NotSent, OutcomeUnknown
from ..client.supervision import Supervisor
from .config import GlideConnection, client_maker

if TYPE_CHECKING:
    from glide import GlideClient, GlideClusterClient

__all__ = ["Lease", "lease"]

logger = logging.getLogger("django_sockets")

Done = Callable[[Sequence[Exception | None]], None]
"""Takes one outcome for each message, on the glide thread."""
OpenConnection = Callable[[], Coroutine[Any, Any, Connection]]

GUARD_SECONDS = 1.0
"""How much longer than the driver's own deadline we wait for it."""
CLUSTER_PINGS = 4
_HINT = "is the server running and reachable, and are the credentials right?"
_SERVER_SAID = "An error was signalled by the server: - "
_REPLY_CODES = {"PermissionDenied": "NOPERM"}


class _Live:
    """A client of the driver and the requests that use it."""

    def __init__(self, client: GlideClient | GlideClusterClient) -> None:
        self.client = client
        self.requests = 0
        self.retired = False
        self.watch: asyncio.Task[None] | None = None

    async def retire(self) -> None:
        """Close it, once those who still wait for a reply have it."""
        self.retired = True
        if not self.requests:
            await self.close()

    async def close(self) -> None:
        """Close it now."""
        if self.watch is not None:
            self.watch.cancel()
            await asyncio.wait([self.watch])
        await self.client.close()


class _Client:
    """One configuration; all of it but its making happens on the glide thread."""

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
        self._live: _Live | None = None
        self._connecting: asyncio.Task[_Live] | None = None
        self._retiring: asyncio.Task[None] | None = None

    async def publish(
        self, messages: Sequence[tuple[bytes, bytes]], seconds: float
    ) -> Sequence[Exception | None]:
        started = asyncio.get_running_loop().time()
        try:
            live = self._live or await self._connected(seconds)
        except ConnectError as exc:
            self._throttle.log(logging.WARNING, "connect", "cannot publish: %s", exc)
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
            await live.close()  # Its last publisher has told who waits for a reply.

    async def _execute(
        self, live: _Live, messages: Sequence[tuple[bytes, bytes]], seconds: float
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
            outcome = _outcome(exc)
            if isinstance(outcome, ReplyError):
                return [outcome] * len(messages)
            reason = str(outcome)
        except Exception as exc:
            self._supervisor.failed("publishing", exc)
            reason = "the driver failed"
        else:
            outcomes = [
                _outcome(reply) if isinstance(reply, Exception) else None for reply in replies
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

    def _give_up(self, live: _Live, reason: str) -> None:
        """Replace a client that is in trouble.

        On a cluster the trouble is mostly one node's: the others go on while the successor
        connects, which takes long when a node is silent.
        """
        if self._live is not live:
            return
        self._throttle.log(
            logging.WARNING, "lost", "%s: publishing was cut off: %s", self.url, reason
        )
        if self._cluster:
            self._start_to_connect()
        else:
            self._live = None
            live.retired = True  # The request that noticed closes it when the others are done.

    async def _connected(self, seconds: float) -> _Live:
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

    def _start_to_connect(self) -> asyncio.Task[_Live]:
        if self._connecting is None:
            self._connecting = asyncio.create_task(self._connect())
            self._connecting.add_done_callback(self._has_connected)
        return self._connecting

    def _has_connected(self, task: asyncio.Task[_Live]) -> None:
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

    async def _connect(self) -> _Live:
        """Connect, and see that the server answers.

        Raises:
            ConnectError, AuthError: nothing was published.
        """
        import glide

        if self._open_connection is not None:
            (await self._open_connection()).abort()
        try:
            client = await self._make()
            try:
                # It connects with its first command.
                await with_deadline(self.url.options.connect_timeout_seconds, _answer(client))
            except BaseException:
                await client.close()
                raise
            return _Live(client)
        except (asyncio.TimeoutError, glide.TimeoutError):
            error = ConnectError(self.url, f"no connection in time: {_HINT}")
        except Exception as exc:
            said = mask(str(exc), self._password)
            if isinstance(exc, glide.GlideError) and _is_authentication(exc):
                error = AuthError(self.url, f"the server refused the credentials: {said}")
            else:
                error = ConnectError(self.url, f"valkey-glide cannot connect: {said}")
        # Without the frames of the driver, which hold the password.
        raise error

    async def _watch(self, live: _Live) -> None:
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
                roles = await _roles(live.client)
            except glide.GlideError as exc:
                outcome = _outcome(exc)
                if isinstance(outcome, ReplyError):
                    backoff.refused(outcome)
                continue  # The next publish finds a connection that does not answer.
            backoff.succeeded()
            if any(role not in (PRIMARY, "") for role in roles) and self._live is live:
                self.give_up("the server is a replica now")


async def _roles(client: GlideClient | GlideClusterClient) -> list[str]:
    """The role of each server that messages go to."""
    import glide

    if not isinstance(client, glide.GlideClusterClient):
        return [read_role(await client.custom_command([b"ROLE"]))]
    replies = await client.custom_command([b"ROLE"], glide.AllPrimaries())
    return [read_role(reply) for reply in replies.values()] if isinstance(replies, dict) else []


async def _answer(client: GlideClient | GlideClusterClient) -> None:
    """Wait for the answer to a PING.

    Several nodes of a cluster are asked at once: one may be silent, and any answer will do. A
    refusal is an answer as well, unless it is about the credentials.
    """
    import glide

    if not isinstance(client, glide.GlideClusterClient):
        await _ping(client.custom_command([b"PING"]))
        return
    pings = [
        asyncio.ensure_future(_ping(client.custom_command([b"PING"], glide.RandomNode())))
        for _ in range(CLUSTER_PINGS)
    ]
    try:
        for ping in asyncio.as_completed(pings):
            try:
                await ping
            except glide.GlideError as exc:
                error = exc
            else:
                return
        raise error
    finally:
        for task in pings:
            task.cancel()
        await asyncio.gather(*pings, return_exceptions=True)


async def _ping(answer: Coroutine[Any, Any, Any]) -> None:
    import glide

    try:
        await answer
    except glide.RequestError as exc:
        if _is_authentication(exc) or not isinstance(_outcome(exc), ReplyError):
            raise


def _outcome(error: Exception) -> Exception:
    """What an error of the driver means for the message it stands for."""
    text = str(error)
    if text.startswith(_SERVER_SAID):
        code, _, rest = text.removeprefix(_SERVER_SAID).partition(": ")
        return ReplyError(f"{_REPLY_CODES.get(code, code)} {rest}".rstrip())
    return OutcomeUnknown(f"connection lost: {text.removesuffix('. Will attempt to reconnect')}")


def _is_authentication(error: Exception) -> bool:
    words = ("WRONGPASS", "NOAUTH", "AuthenticationFailed", "Password authentication failed")
    return any(word in str(error) for word in words)


class _GlideThread:
    """The thread, its loop and the clients on it, each with the number of its leases."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.clients: dict[object, tuple[_Client, int]] = {}
        self.tasks: set[asyncio.Task[Any]] = set()
        try:
            start_thread(self.loop.run_forever, name="django_sockets glide", purpose="driver=glide")
        except BaseException:
            self.loop.close()
            raise

    def start(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run it as a task; on the thread only."""
        task = self.loop.create_task(coroutine)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task


_lock = threading.Lock()
_thread: _GlideThread | None = None
_abandoned: list[_GlideThread] = []


def _after_fork_in_child() -> None:
    """Forget the parent's thread; it is kept, because closing it would harm the parent."""
    global _lock, _thread
    _lock = threading.Lock()
    if _thread is not None:
        _abandoned.append(_thread)
        _thread = None


after_fork_in_child(_after_fork_in_child)


class Lease:
    """A publisher's share of a client, usable on any thread."""

    def __init__(self, thread: _GlideThread, key: object, client: _Client) -> None:
        self._thread = thread
        self._key = key
        self._client = client

    def publish(self, messages: Sequence[tuple[bytes, bytes]], seconds: float, done: Done) -> None:
        """Publish 1..n messages in one request; calls are carried out in their order."""
        self._thread.loop.call_soon_threadsafe(self._publish, messages, seconds, done)

    def _publish(self, messages: Sequence[tuple[bytes, bytes]], seconds: float, done: Done) -> None:
        def ended(task: asyncio.Task[Sequence[Exception | None]]) -> None:
            error = None if task.cancelled() else task.exception()
            if task.cancelled() or error is not None:
                # Without its traceback: the driver's frames hold the password.
                logger.error("%s: valkey-glide failed: %r", self._client.url, error)
                done([OutcomeUnknown("the driver failed")] * len(messages))
            else:
                done(task.result())

        self._thread.start(self._client.publish(messages, seconds)).add_done_callback(ended)

    def give_up(self, reason: str) -> None:
        """Replace the client: it serves a server that it should not."""
        self._thread.loop.call_soon_threadsafe(self._client.give_up, reason)

    async def release(self) -> None:
        """Give it back; the last one closes the client."""
        thread = self._thread
        with _lock:
            if thread is not _thread:
                return  # Of the parent process.
            client, leases = thread.clients[self._key]
            if leases > 1:
                thread.clients[self._key] = client, leases - 1
                return
            del thread.clients[self._key]
            closing = asyncio.run_coroutine_threadsafe(client.aclose(), thread.loop)
        await asyncio.wrap_future(closing)


def lease(
    url: BrokerURL,
    connection: GlideConnection,
    sharded: bool,
    open_connection: OpenConnection | None,
) -> Lease:
    """A share of the client for a configuration; it connects with the first message.

    Raises:
        ConfigurationError: see `GlidePublisher`.
    """
    global _thread
    key = (url, connection, sharded)
    with _lock:
        known = _thread.clients.get(key) if _thread is not None else None
        client, leases = known or (_Client(url, connection, sharded, open_connection), 0)
        thread = _thread = _thread or _GlideThread()
        thread.clients[key] = client, leases + 1
    return Lease(thread, key, client)
