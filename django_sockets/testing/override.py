"""override_broker: another broker for the length of a test."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator

from ..conf import Config, Source, override_default

__all__ = ["override_broker"]

_numbers = itertools.count(1)


@contextlib.contextmanager
def override_broker(url: Source = "memory://") -> Iterator[Config]:
    """Make `url` the default broker of the whole process; use it with `with`, or as a decorator.

    Sockets, broadcasters and hubs made meanwhile without a configuration of their own use it.
    Those that exist already, or name a broker themselves, keep theirs.

    Args:
        url: what `load_config` takes. With the default, each use has an in-process bus of its own,
            so that no test hears another.

    Yields:
        The configuration; its `url` is the broker's.
    """
    if url == "memory://":
        url = f"memory://override-{next(_numbers)}"
    with override_default(url) as config:
        yield config
