"""Checks whether a broker is usable, for `python -m django_sockets check`. It prints nothing.

Only `__main__` and Django's system checks import this module.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import statistics
import time
from collections.abc import Sequence

from .broker import Inspectable
from .conf import Config, default_config_and_origin, load_config
from .deadlines import with_deadline
from .delivery.events import Gap
from .errors import BrokerError, ConfigurationError, HistoryError, PublishError
from .history import HistoryRule, HistoryRules, Position
from .hub.hub import Hub, open_hub
from .redaction import frameless
from .registry import open_broker
from .runtime.startup import SOURCES

__all__ = ["SOURCES", "Findings", "check", "configuration"]

ROUND_TRIPS = 20
TRIAL = "django_sockets check of the history:"
"""Prefix of the channel that is kept for a moment."""


@dataclasses.dataclass
class Findings:
    """The findings of a check. Unknown values are None or empty.

    Attributes:
        ok: messages were delivered.
        broker: the URL without its password.
        source: a key of SOURCES.
        problem: the reason why `ok` is False.
        server, topology, nodes, features, limits, warnings: see `django_sockets.broker.Report`.
        connect_ms: time to connect and to get an acknowledged subscription.
        round_trip_ms: median time from the call of publish to the arrival of the message.
    """

    ok: bool
    broker: str | None = None
    source: str | None = None
    problem: str | None = None
    server: str | None = None
    topology: str | None = None
    connect_ms: float | None = None
    round_trip_ms: float | None = None
    nodes: dict[str, str] = dataclasses.field(default_factory=dict)
    features: dict[str, str] = dataclasses.field(default_factory=dict)
    limits: dict[str, str] = dataclasses.field(default_factory=dict)
    warnings: list[str] = dataclasses.field(default_factory=list)


@frameless
def configuration(urls: Sequence[str]) -> tuple[Config, str]:
    """The configuration for 0..n URLs and its key in SOURCES. No URL means the default.

    Raises:
        ConfigurationError: it is wrong, or Django's settings cannot be loaded.
    """
    if urls:
        return load_config(urls), "argument"
    try:
        return default_config_and_origin()
    except ConfigurationError:
        raise
    except Exception as exc:  # A settings module may raise anything.
        raise ConfigurationError(f"Django's settings cannot be loaded: {exc}") from exc


async def check(config: Config, source: str) -> Findings:
    """Inspect the broker of a configuration, and measure messages through it.

    Raises:
        ConfigurationError: the configuration is wrong.
    """
    findings = Findings(ok=False, broker=str(config.url), source=source)
    try:
        await _inspect(config, findings)
        async with open_hub(config) as hub:
            findings.limits["payload"] = f"at most {hub.max_payload_bytes} bytes"
            if findings.problem is None:
                if config.url.history:
                    await _try_history(config, findings)
                await _measure(hub, findings)
    except BrokerError as exc:
        findings.problem = str(exc)
    findings.ok = findings.problem is None
    return findings


async def _inspect(config: Config, findings: Findings) -> None:
    broker = open_broker(config.url)
    try:
        if isinstance(broker, Inspectable):
            report = await broker.inspect()
            findings.server, findings.topology = report.server, report.topology
            findings.nodes, findings.features = report.nodes, report.features
            findings.limits, findings.warnings = report.limits, report.warnings
            findings.problem = report.problem
        findings.limits["channel name"] = f"at most {broker.limits.max_channel_bytes} bytes"
    finally:
        await broker.aclose()


async def _measure(hub: Hub, findings: Findings) -> None:
    channel = f"check:{os.urandom(8).hex()}"
    seconds = hub.config.url.options.publish_timeout_seconds
    durations = []
    started = time.perf_counter()
    async with hub.subscribe(channel) as events:
        findings.connect_ms = _ms(time.perf_counter() - started)
        # The first round trip opens the publishing connection and is not counted.
        for _ in range(1 + ROUND_TRIPS):
            started = time.perf_counter()
            await hub.publish(channel, b"round trip")
            try:
                event = await with_deadline(seconds, anext(events))
            except asyncio.TimeoutError:
                problem = f"it took a message, but did not deliver it within {seconds:g} s"
                raise BrokerError(hub.config.url, problem) from None
            if isinstance(event, Gap):
                raise BrokerError(
                    hub.config.url, f"messages were lost during the check: {event.reason}"
                )
            durations.append(time.perf_counter() - started)
    findings.round_trip_ms = _ms(statistics.median(durations[1:]))


async def _try_history(config: Config, findings: Findings) -> None:
    """Keep a message and read it, on a channel of its own that is removed after a few seconds."""
    rule = HistoryRules.of({TRIAL: HistoryRule(messages=1, seconds=10)})
    # The longest prefix decides, so the rules of the application do not apply to this channel.
    config = dataclasses.replace(config, url=config.url.with_history(rule))
    channel = f"{TRIAL}{os.urandom(8).hex()}"
    async with open_hub(config) as hub:
        try:
            await hub.publish(channel, b"kept")
        except PublishError as exc:
            raise BrokerError(
                config.url,
                "there are rules for the history, but the server did not keep a message: "
                f"{exc.reason}. See the section 'What the server needs' of docs/history.md",
            ) from exc
        try:
            page = await hub.history(channel)
            kept = len(page.messages) == 1
            problem = "it is not kept"
        except HistoryError as exc:
            kept, problem = False, exc.reason
    if not kept:
        findings.features["history"] = "not kept"
        findings.warnings.append(
            f"a message was published, but its history cannot be read: {problem}"
        )
        return
    findings.features["history"] = "works"
    if "memory" in findings.features:
        # One small message was kept. The next one may be refused.
        findings.features["history"] = f"works now, but the memory is {findings.features['memory']}"
    if not Position.parse(page.position).history_id:
        findings.features["history"] += ", without the id of the data set"
        findings.warnings.append(
            "the server hides its master_replid: after a failover that lost messages, a client "
            "that resumes may not notice; allow INFO (+info) if the service can"
        )


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
