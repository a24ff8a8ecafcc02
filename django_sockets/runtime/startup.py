"""Log lines at the start of a server: the broker in use, and a warning about `memory://`.

`memory://` does not leave its process. Under a server with several worker processes a broadcast
reaches only the sockets of one worker, without an error; the warning tells the reason.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from typing import Any

from ..conf import DJANGO_SETTING, ENVIRONMENT_VARIABLE, Config, default_config_and_origin
from ..errors import ConfigurationError
from ..registry import open_broker

__all__ = ["SOURCES", "announce", "announce_default", "server_workers"]

logger = logging.getLogger("django_sockets")

SOURCES = {
    "argument": "given as the argument",
    "setting": f"from Django's setting {DJANGO_SETTING}",
    "environment": f"from the environment variable {ENVIRONMENT_VARIABLE}",
    "override": "set by a test",
    "default": "the built-in default",
}
"""The sources of a configuration, and the words for them."""

MOST_ANNOUNCED = 100
"""The most brokers that are logged in one process; tests may use thousands."""
_announced: set[str] = set()


def announce_default() -> None:
    """Log the default broker at the start of a server."""
    try:
        config, origin = default_config_and_origin()
        open_broker(config.url)  # It does not connect.
    except ConfigurationError as exc:
        logger.error("the configuration of the broker is wrong: %s", exc, extra={"reason": exc})
        return
    announce(config, SOURCES[origin])


def announce(config: Config, source: str | None = None) -> None:
    """Log that a broker is in use, once for each broker; warn of `memory://` with several workers.

    Brokers that a test or the library itself has put in place are not logged.

    Args:
        source: the source of the configuration, in the words of `SOURCES`.
    """
    if config.open_broker is not open_broker:
        return
    url = str(config.url)  # This text has no password.
    if url in _announced or len(_announced) >= MOST_ANNOUNCED:
        return
    _announced.add(url)
    logger.info("the broker is %s%s", url, f" ({source})" if source else "", extra={"broker": url})
    if config.url.scheme == "memory" and server_workers() > 1:
        logger.warning(
            "the broker is %s, which stays inside one process, but the server has several "
            "worker processes: a broadcast reaches only the sockets of the process that made "
            'it. Set %s = "redis://..." or the environment variable %s for all of them',
            url,
            DJANGO_SETTING,
            ENVIRONMENT_VARIABLE,
            extra={"broker": url},
        )


def server_workers() -> int:
    """The least number of worker processes of this server; 1 if it is not known.

    The options of a server may come from its command line, a file, the environment or a call.
    Therefore this function searches the call stack for the server's function that runs a worker;
    the variables of that function hold the configuration. A server without workers does not call
    such a function.
    """
    frame = sys._getframe()
    while frame is not None:
        count = _WORKER_FUNCTIONS.get((frame.f_globals.get("__name__"), frame.f_code.co_name))
        if count is not None:
            try:
                return max(1, int(count(frame.f_locals)))
            except (AttributeError, KeyError, TypeError, ValueError):
                return 1  # This version of the server has other variables.
        if frame.f_back is None:
            break
        frame = frame.f_back
    return 1


def _of_uvicorn(variables: Mapping[str, Any]) -> int:
    config = variables["config"]
    # With `reload` uvicorn runs one worker and ignores the configured number.
    return 1 if config.should_reload else config.workers


_WORKER_FUNCTIONS: dict[tuple[Any, str], Callable[[Mapping[str, Any]], int]] = {
    ("uvicorn._subprocess", "subprocess_started"): _of_uvicorn,
    # granian gives a worker only its own number: the first worker counts as the only one.
    ("granian.server.mp", "_spawn_asgi_worker"): lambda variables: variables["worker_id"],
    ("granian.server.mp", "_spawn_asgi_lifespan_worker"): lambda variables: variables["worker_id"],
    ("gunicorn.arbiter", "spawn_worker"): lambda variables: variables["self"].cfg.workers,
    ("hypercorn.asyncio.run", "asyncio_worker"): lambda variables: variables["config"].workers,
    ("hypercorn.asyncio.run", "uvloop_worker"): lambda variables: variables["config"].workers,
}
"""(module, function) -> a function that reads the number of workers from its variables. Tested with
uvicorn 0.54, gunicorn 27.0, hypercorn 0.18 and granian 2.8."""
