"""The library's own event loop for callers that have none, hubs shared by loop, fork and exit.

There is at most one background thread. Scripts run their listeners on it; everyone who only
publishes (a WSGI view, a task queue's worker, code inside `async_to_sync`) goes through its hub.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import logging
import socket
import threading
import time
from asyncio import _get_running_loop as running_loop  # None on a thread that runs none.
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import Any

from ..conf import Config, Settings
from ..forks import after_fork_in_child
from ..hub.hub import Hub, hub_on
from ..loops import forget_closed
from ..os_threads import OsThread, original, replaced_by, waiting
from .startup import announce
from .worker_threads import WorkerPool

__all__ = [
    "EXIT_SECONDS",
    "BackgroundLoop",
    "at_exit",
    "background_loop",
    "close_shared_hubs",
    "existing_hub",
    "finish_before_exit",
    "hubs_of_running_loop",
    "local_hubs",
    "not_at_exit",
    "publish",
    "set_draining",
    "shared_hub",
    "through_hub",
    "worker_pool",
]

logger = logging.getLogger("django_sockets")

EXIT_SECONDS = 2.0
"""How long the exit of the interpreter waits for open sockets and scheduled calls."""
RESUME_SECONDS = 0.1
"""Pause of a background loop that exceptions keep stopping within a second: if the cause stays, it
neither fills the log nor takes a whole core."""


class BackgroundLoop(asyncio.SelectorEventLoop):
    """A loop whose `call_soon` may be called from any thread.

    `asyncio.Queue.put_nowait` from another thread completes a future whose callback goes through
    `call_soon`, which does not wake a sleeping loop. Scripts hand us `queue.get` and do just that.

    Under gevent it is made of what gevent has replaced, and runs on a real thread.

    Attributes:
        ends: the interpreter is exiting; else the loop goes on when something has stopped it.
    """

    owner: int | None = None
    ends = False

    def __init__(self) -> None:
        self._greenlets = replaced_by() == "gevent"
        super().__init__(original("selectors", "DefaultSelector")() if self._greenlets else None)

    def call_soon(  # type: ignore[override]
        self, callback: Any, *args: Any, context: Any = None
    ) -> asyncio.Handle:
        if self.owner is not None and threading.get_ident() != self.owner:
            return self.call_soon_threadsafe(callback, *args, context=context)
        return super().call_soon(callback, *args, context=context)

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Any, *args: Any
    ) -> asyncio.Future[Any]:
        """As in any loop. Under gevent the default executor would be greenlets of this thread."""
        if executor is not None or not self._greenlets:
            return super().run_in_executor(executor, func, *args)
        if func is socket.getaddrinfo:
            func = original("socket", "getaddrinfo")
        return self._in_os_thread(func, args)

    def _in_os_thread(self, func: Callable[..., Any], args: Sequence[Any]) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = self.create_future()

        def settle(report: Callable[[Any], None], value: object) -> None:
            if not future.done():
                report(value)

        def outcome(report: Callable[[Any], None], value: object) -> None:
            with contextlib.suppress(RuntimeError):  # The loop is gone.
                self.call_soon_threadsafe(settle, report, value)

        def run() -> None:
            try:
                result = func(*args)
            except BaseException as exc:
                outcome(future.set_exception, exc)
            else:
                outcome(future.set_result, result)

        OsThread(run, name="django_sockets executor", purpose="a call outside the event loop")
        return future


class _Runtime:
    """Everything that a forked child must start afresh."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.loop: BackgroundLoop | None = None
        self.thread: OsThread | None = None
        self.started = threading.Event()
        self.pool: WorkerPool | None = None
        self.hubs: dict[asyncio.AbstractEventLoop, dict[Config, Hub]] = {}
        self.draining: dict[asyncio.AbstractEventLoop, None] = {}
        self.exit_calls: set[Callable[[], Awaitable[None]]] = set()
        self.unfinished: set[concurrent.futures.Future[Any]] = set()


_runtime = _Runtime()
_abandoned: list[_Runtime] = []


def background_loop() -> BackgroundLoop:
    """The library's loop, started on first use.

    Raises:
        ThreadError: its thread cannot be started; the next call tries again.
    """
    runtime = _runtime
    loop = runtime.loop
    if loop is None or not runtime.started.is_set() or (loop.is_closed() and not loop.ends):
        with waiting():
            loop = _start_loop(runtime)
            runtime.started.wait()
    return loop


def _start_loop(runtime: _Runtime) -> BackgroundLoop:
    """The loop, whose thread may not have come to run it yet."""
    with runtime.lock:
        if runtime.loop is not None and (runtime.loop.ends or not runtime.loop.is_closed()):
            return runtime.loop
        loop, started = BackgroundLoop(), threading.Event()
        try:
            runtime.thread = OsThread(
                lambda: _run_loop(loop, started),
                name="django_sockets loop",
                purpose="the event loop for calls from threads without one",
            )
        except BaseException:
            loop.close()
            raise
        runtime.started, runtime.loop = started, loop
        _register_exit()
        return loop


def _run_loop(loop: BackgroundLoop, started: threading.Event) -> None:
    asyncio.set_event_loop(loop)
    loop.owner = threading.get_ident()
    loop.call_soon(started.set)
    stops = 0
    while not loop.ends and not loop.is_closed():
        began = time.monotonic()
        try:
            loop.run_forever()
        except BaseException:
            # Such as SystemExit, which asyncio passes on: from a handler, or from a callback.
            logger.exception("the background event loop was stopped by an exception; it goes on")
            stops = stops + 1 if time.monotonic() - began < 1.0 else 0
            if stops > 1:
                time.sleep(RESUME_SECONDS)
        else:
            if not loop.ends:
                logger.error("the background event loop was stopped by a call; it goes on")


def worker_pool(settings: Settings) -> WorkerPool:
    """The pool for `def` handlers; the first settings of the process decide its size."""
    runtime = _runtime
    with runtime.lock:
        if runtime.pool is None:
            runtime.pool = WorkerPool(max(1, int(settings.handler_threads)))
        return runtime.pool


def shared_hub(config: Config, loop: asyncio.AbstractEventLoop | None = None) -> Hub:
    """The hub that the running loop's sockets share; opened on first use, closed with the loop.

    Args:
        loop: the running one, of whoever knows it: until Python 3.11 asking is a system call.
    """
    loop = loop or asyncio.get_running_loop()
    hubs = _runtime.hubs.get(loop)
    if hubs is None:
        with _runtime.lock:
            forget_closed(_runtime.hubs)
            hubs = _runtime.hubs.setdefault(loop, {})
    hub = hubs.get(config)
    if hub is None or hub.closed:
        announce(config)
        hub = hubs[config] = Hub(config)
        hub.connections.draining = loop in _runtime.draining
    return hub


def local_hubs() -> list[Hub]:
    """The open hubs of this process, one for each event loop and configuration; on any thread.

    Among them are those of the library's own loop, through which plain code publishes, such as a
    view or a task. Those of the running loop, if there is one, come first. On another thread than
    its loop's only `config` and `stats` of a hub may be used.
    """
    with _runtime.lock:
        by_loop = dict(_runtime.hubs)
    here = running_loop()
    loops = sorted(by_loop, key=lambda loop: loop is not here)
    return [hub for loop in loops if not loop.is_closed() for hub in _open(by_loop[loop])]


def hubs_of_running_loop() -> list[Hub]:
    """The open hubs of the running loop that sockets share, one for each configuration."""
    return _open(_runtime.hubs.get(asyncio.get_running_loop(), {}))


def _open(hubs: dict[Config, Hub]) -> list[Hub]:
    return [hub for hub in list(hubs.values()) if not hub.closed]


def set_draining() -> None:
    """The running loop takes no sockets any more."""
    forget_closed(_runtime.draining)
    _runtime.draining[asyncio.get_running_loop()] = None
    for hub in hubs_of_running_loop():
        hub.connections.draining = True


async def close_shared_hubs() -> None:
    """Close every shared hub of the running loop."""
    hubs = _runtime.hubs.pop(asyncio.get_running_loop(), {})
    for hub in hubs.values():
        try:
            await hub.aclose()
        except Exception:
            logger.exception("%s: closing the broker failed", hub.config.url)


def existing_hub(loop: asyncio.AbstractEventLoop, config: Config) -> Hub | None:
    """The open hub of a loop for a configuration: the sockets' shared one, or one of `open_hub`."""
    hub = _runtime.hubs.get(loop, {}).get(config)
    return hub if hub is not None and not hub.closed else hub_on(loop, config)


def publish(
    config: Config,
    channels: Iterable[str],
    payload: bytes,
    *,
    is_text: bool,
    origin: bytes | None = None,
) -> Coroutine[Any, Any, None]:
    """Publish `through_hub`.

    Raises:
        ChannelError, PayloadTooLarge, PublishError: see `Hub.publish`.
    """
    hub = existing_hub(asyncio.get_running_loop(), config)
    if hub is not None:  # As below, without two more coroutines: there may be thousands of calls.
        return hub.publish(channels, payload, is_text=is_text, origin=origin)
    return through_hub(
        config, lambda hub: hub.publish(channels, payload, is_text=is_text, origin=origin)
    )


async def through_hub(config: Config, operation: Callable[[Hub], Awaitable[None]]) -> None:
    """Await it with the running loop's own hub if it has one, else with the background's."""
    loop = asyncio.get_running_loop()
    hub = existing_hub(loop, config)
    if hub is not None:
        await operation(hub)
        return

    async def in_background() -> None:
        await operation(shared_hub(config))

    background = background_loop()
    if background is loop:
        await in_background()
    else:
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(in_background(), background))


def at_exit(call: Callable[[], Awaitable[None]]) -> None:
    """Await `call()` on the background loop when the interpreter exits, within `EXIT_SECONDS`."""
    _runtime.exit_calls.add(call)


def not_at_exit(call: Callable[[], Awaitable[None]]) -> None:
    """Take `at_exit` back."""
    _runtime.exit_calls.discard(call)


def finish_before_exit(future: concurrent.futures.Future[Any]) -> None:
    """Let the interpreter's exit wait for a scheduled call, within `EXIT_SECONDS`."""
    unfinished = _runtime.unfinished
    unfinished.add(future)
    future.add_done_callback(unfinished.discard)


def _register_exit() -> None:
    # At `atexit` time executors have stopped. This hook runs before that, when the main thread
    # ends; it is private but the same on 3.10 to 3.13.
    try:
        threading._register_atexit(_shut_down)  # type: ignore[attr-defined]
    except (AttributeError, RuntimeError):
        atexit.register(_shut_down)


def _shut_down() -> None:
    """Let what is open on the background loop end, then stop it."""
    runtime = _runtime
    loop, thread = runtime.loop, runtime.thread
    if loop is None or thread is None or not loop.is_running():
        return
    loop.ends = True
    asyncio.run_coroutine_threadsafe(_end(runtime), loop).add_done_callback(
        lambda _: loop.call_soon_threadsafe(loop.stop)
    )
    thread.join(2 * EXIT_SECONDS)
    if not thread.is_alive():
        loop.close()


async def _end(runtime: _Runtime) -> None:
    waiting: list[asyncio.Future[Any]] = [
        asyncio.ensure_future(call()) for call in list(runtime.exit_calls)
    ]
    waiting += [asyncio.wrap_future(future) for future in list(runtime.unfinished)]
    if waiting:
        await asyncio.wait(waiting, timeout=EXIT_SECONDS)
    await close_shared_hubs()
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=EXIT_SECONDS / 2)


def _after_fork_in_child() -> None:
    """Start afresh; the parent's things are kept alive, because closing them would harm it."""
    global _runtime
    _abandoned.append(_runtime)
    _runtime = _Runtime()


after_fork_in_child(_after_fork_in_child)
