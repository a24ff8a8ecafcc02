"""System checks of the channel layers in CHANNEL_LAYERS that are ours; see docs/checks.md.

The layers of other packages are not checked. Channels is imported only if a layer is ours.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, Warning  # noqa: A004

from ..check import check
from ..conf import Config, load_config
from ..deadlines import with_deadline
from ..errors import BrokerError, ConfigurationError

__all__ = ["BACKEND", "check_channel_layers", "check_channel_layers_reachable"]

BACKEND = "django_sockets.integration.channel_layer.ChannelLayer"
REACH_SECONDS = 5.0
"""The longest wait for one broker."""

Message = Callable[[Callable[..., CheckMessage], str, str, str], CheckMessage]


def _own_layers() -> Iterator[tuple[str, dict[str, Any]]]:
    """The alias and the CONFIG of each layer of ours."""
    layers = getattr(settings, "CHANNEL_LAYERS", None)
    for alias, layer in layers.items() if isinstance(layers, dict) else ():
        if isinstance(layer, dict) and layer.get("BACKEND") == BACKEND:
            config = layer.get("CONFIG", {})
            yield alias, config if isinstance(config, dict) else {"CONFIG": config}


def _config_of(options: dict[str, Any]) -> Config:
    """The broker of a layer; raises ConfigurationError if an option is wrong."""
    from .channel_layer import ChannelLayer
    from .channel_layer.options import source_of

    ChannelLayer(**options)
    return load_config(source_of(options.get("url"), options.get("hosts")))


def check_channel_layers(message: Message, other_processes: str | None) -> list[CheckMessage]:
    """E021: the CONFIG of a layer is wrong. W022: its broker serves one process only.

    Args:
        other_processes: a reason to expect more than one process, or None.
    """
    found = []
    for alias, options in _own_layers():
        where = f"CHANNEL_LAYERS[{alias!r}]"
        try:
            config = _config_of(options)
        except ModuleNotFoundError as exc:
            hint = "Install the extra: pip install 'django-sockets[channels]>=4.0.dev0'."
            found.append(message(Error, "E021", f"{where}: {exc}.", hint))
            continue
        except (ConfigurationError, TypeError) as exc:
            hint = 'Its CONFIG takes the options of channels_redis, and "url".'
            found.append(message(Error, "E021", f"{where}: {exc}", hint))
            continue
        if config.url.scheme in ("memory", "fakeredis") and other_processes is not None:
            problem = f"{where} uses {config.url}, but {other_processes}."
            hint = (
                "A group then reaches only the consumers of one process: name a cache, such as "
                '"CONFIG": {"url": "redis://..."}.'
            )
            found.append(message(Warning, "W022", problem, hint))
    return found


def check_channel_layers_reachable(message: Message) -> list[CheckMessage]:
    """W023: the broker of a layer is not usable from here."""
    found = []
    for alias, options in _own_layers():
        try:
            config = _config_of(options)
        except (ConfigurationError, ModuleNotFoundError, TypeError):
            continue  # `check_channel_layers` reports it as E021.
        problem = asyncio.run(_problem(config))
        if problem is not None:
            text = f"The broker of CHANNEL_LAYERS[{alias!r}] is not usable: {problem}"
            hint = "Silence this where no broker is expected, such as in a build."
            found.append(message(Warning, "W023", text, hint))
    return found


async def _problem(config: Config) -> str | None:
    """Why the broker is not usable, or None."""
    try:
        findings = await with_deadline(REACH_SECONDS, check(config, "setting"))
    except asyncio.TimeoutError:
        return f"{config.url}: no answer within {REACH_SECONDS:g} s"
    except (BrokerError, ConfigurationError) as exc:
        return str(exc)
    return findings.problem
