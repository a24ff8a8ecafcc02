"""Publishing on a thread that waits for the result, without the event loop if the broker can.

This saves the two thread switches of `Calls.plain`, which cost more than the publish.
"""

from __future__ import annotations

import asyncio
from functools import partial

from ..broker import NoReplyInTime
from ..conf import Config
from ..errors import CallError
from ..os_threads import replaced_by
from ..overrides import publish_observers
from .background import publish
from .shared_hubs import existing_hub, shared_hub
from .sync_calls import Calls
from .thread_safe_loop import BackgroundLoop

__all__ = ["can_publish_on_thread", "publish_on_thread"]

DIRECT_BYTES = 64 * 1024
"""The event loop publishes larger messages: their deadlines grow with their size."""
ATTEMPTS = 2
"""How often a thread tries again when the connection was lent or recalled at the same moment."""


def can_publish_on_thread(config: Config, calls: Calls) -> bool:
    """Whether `publish_on_thread` may be tried, on a thread without an event loop.

    Args:
        calls: the calls that the message must not overtake.
    """
    loop = calls.home
    if replaced_by() is not None or publish_observers:
        return False
    if calls.scheduled or not isinstance(loop, BackgroundLoop) or loop.not_begun:
        return False
    hub = existing_hub(loop, config)
    return hub is None or hub.threads is not None


def publish_on_thread(
    config: Config,
    calls: Calls,
    names: list[str],
    payload: bytes,
    *,
    is_text: bool,
    compress: bool = True,
) -> bool:
    """Publish on the calling thread and wait for the server, if the broker can do that.

    Call it only if `can_publish_on_thread`. The first call publishes on the event loop; later ones
    use the connection that it then lends. In a signal handler that has interrupted such a call, the
    message is only scheduled.

    Returns:
        False if `Calls.plain` must publish it: nothing was sent.

    Raises:
        ChannelError, PayloadTooLarge, PublishError: see `Hub.publish`.
        CallError: the server or the event loop did not answer in time.
    """
    if len(payload) * len(names) > DIRECT_BYTES:
        return False
    hub = existing_hub(calls.home, config)
    if hub is not None and hub.threads is not None and hub.threads.busy_here:
        calls.schedule(partial(publish, config, names, payload, is_text=is_text, compress=compress))
        return True
    timeout_seconds = calls.timeout_seconds
    on_loop = partial(_publish_unless_lent, config, names, payload, is_text, compress)
    try:
        for _ in range(ATTEMPTS):
            if hub is not None and hub.publish_on_thread(
                names, payload, is_text, timeout_seconds, compress=compress
            ):
                return True
            if calls.plain(on_loop):
                return True
    except NoReplyInTime:
        raise CallError(
            f"the server did not answer within {timeout_seconds:g} s "
            "(setting sync_call_timeout_seconds); the message may reach it still"
        ) from None
    return False


async def _publish_unless_lent(
    config: Config, names: list[str], payload: bytes, is_text: bool, compress: bool
) -> bool:
    """Publish on the event loop, and let later calls publish on their threads.

    Returns:
        False if the calling thread can do it itself by now: nothing was sent.
    """
    hub = existing_hub(asyncio.get_running_loop(), config) or shared_hub(config)
    threads = hub.threads
    if threads is not None:
        if threads.lent:
            return False
        threads.lend_soon()
    await hub.publish(names, payload, is_text=is_text, compress=compress)
    return True
