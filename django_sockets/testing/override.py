"""override_broker: use another default broker in a test."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator

from ..conf import Config, Source, load_config
from ..overrides import override_default_config

__all__ = ["override_broker"]

_numbers = itertools.count(1)


@contextlib.contextmanager
def override_broker(url: Source = "memory://") -> Iterator[Config]:
    """Make `url` the default broker of the process; use it with `with`, or as a decorator.

    Sockets, broadcasters and hubs that are created in the block use it, unless they name a broker
    themselves. Existing ones keep theirs.

    Args:
        url: anything that `load_config` takes. With the default, and with a dict whose "url" is
            "memory://", each use has an in-process bus of its own, so that tests do not receive
            each other's messages, nor read each other's history.

    Yields:
        The configuration; its `url` is the URL of the broker.
    """
    own = f"memory://override-{next(_numbers)}"
    if url == "memory://":
        url = own
    elif isinstance(url, dict) and url.get("url") == "memory://":
        url = {**url, "url": own}
    config = load_config(url)
    with override_default_config(config):
        yield config
