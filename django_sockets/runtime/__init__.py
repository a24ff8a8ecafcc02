"""Event loops, threads, fork and exit: where calls run, and the hubs that they share.

Other packages import what is listed here.
"""

from .background import (
    EXIT_SECONDS,
    BackgroundLoop,
    at_exit,
    background_loop,
    close_shared_hubs,
    existing_hub,
    finish_before_exit,
    hubs_of_running_loop,
    local_hubs,
    not_at_exit,
    publish,
    set_draining,
    shared_hub,
    through_hub,
    worker_pool,
)

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
