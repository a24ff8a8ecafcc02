"""Event loops, threads, fork and exit: where calls run, and the hubs that they share.

Other packages import what is listed here.
"""

from .background import background_loop, publish, through_hub
from .interpreter_exit import EXIT_SECONDS, at_exit, finish_before_exit, not_at_exit
from .shared_hubs import (
    close_shared_hubs,
    existing_hub,
    hubs_of_running_loop,
    local_hubs,
    set_draining,
    shared_hub,
)
from .thread_publishing import can_publish_on_thread, publish_on_thread
from .thread_safe_loop import BackgroundLoop
from .worker_threads import run_in_thread, worker_pool

__all__ = [
    "EXIT_SECONDS",
    "BackgroundLoop",
    "at_exit",
    "background_loop",
    "can_publish_on_thread",
    "close_shared_hubs",
    "existing_hub",
    "finish_before_exit",
    "hubs_of_running_loop",
    "local_hubs",
    "not_at_exit",
    "publish",
    "publish_on_thread",
    "run_in_thread",
    "set_draining",
    "shared_hub",
    "through_hub",
    "worker_pool",
]
