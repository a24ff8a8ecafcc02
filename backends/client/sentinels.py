"""Questions to Redis Sentinel: which server is the primary of a service, and when that changes.

Each sentinel has two connections: one for questions, and one that subscribes to `+switch-master`
and triggers a question. Of the last answers of all sentinels, the one with the highest epoch
counts.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

from ...errors import AuthError, ConnectError
from ...log import LogThrottle
from ...url import Address, BrokerURL
from .commands import PLAIN
from .connection import Opener
from .connector import Connector
from .credentials import Credentials
from .deadlines import Backoff, first_answers
from .link_reports import SentinelReports
from .parser import ReplyError, pairs
from .pipeline import NotSent, OutcomeUnknown, Pipeline
from .subscriber import Subscriber

__all__ = ["SENTINEL_OPTIONS", "Sentinels"]

logger = logging.getLogger("django_sockets")

DEFAULT_PORT = 26379
SENTINEL_OPTIONS = {
    "sentinel_username": "user name for the sentinels",
    "sentinel_password": "password for the sentinels; that of the URL is for the data nodes",
}
SWITCH = b"+switch-master"
GRACE_SECONDS = 0.05
"""How long other sentinels may take after the first answer, which may be outdated."""
LONGEST_PAUSE_SECONDS = 10.0
"""The longest pause between two attempts to subscribe at a sentinel. It may be long: while the
primary lives, messages flow without the sentinels. When a connection to the primary is lost, each
attempt to replace it asks every sentinel without a pause, and an answer ends the pause."""


class _Answer(NamedTuple):
    """The answer of one sentinel; a higher epoch means a newer configuration."""

    epoch: int
    primary: Address
    replicas: int


class Sentinels:
    """Asks sentinels for the primary of one service, and notices when it changes.

    Args:
        service: the name under which the sentinels watch the primary.
        on_switch: called with the new primary after a change.

    Attributes:
        named: the primary named last, or None.
    """

    def __init__(self, url: BrokerURL, service: str, on_switch: Callable[[Address], None]) -> None:
        self._url = url
        self.service = service
        self._on_switch = on_switch
        self.named: Address | None = None
        extra = dict(url.extra)
        login = Credentials(extra.get("sentinel_username"), extra.get("sentinel_password"))
        connector = Connector(
            url, SENTINEL_OPTIONS, credentials=_FixedCredentials(login), database=0
        )
        self._each = [
            _Sentinel(url, service, address, partial(connector.open, address), self._follow)
            for address in map(_with_port, url.addresses)
        ]

    async def primary(self) -> Address:
        """The primary, by the newest of the last answers.

        Raises:
            ConnectError: no sentinel answers, or none knows the service.
            AuthError: the sentinels refuse the credentials.
        """
        answers, problems = await self._ask_all(GRACE_SECONDS)
        if not answers:
            raise self._worst(problems)
        return self._name_newest(answers)

    async def count(self) -> tuple[int, int]:
        """The number of sentinels that answer, and the number of replicas they know."""
        seconds = self._url.options.connect_timeout_seconds
        answers, _ = await self._ask_all(seconds)
        return len(answers), max((answer.replicas for answer in answers), default=0)

    async def _ask_all(self, grace_seconds: float) -> tuple[list[_Answer], list[Exception]]:
        return await first_answers(
            [sentinel.ask() for sentinel in self._each],
            self._url.options.connect_timeout_seconds,
            grace_seconds,
        )

    def _follow(self) -> None:
        """Consider a new answer, unless it is the first one, which may be outdated."""
        if self.named is not None:
            self._name_newest()

    def _name_newest(self, answers: Iterable[_Answer] = ()) -> Address:
        """Name the primary with the highest epoch.

        Sentinels without a new answer count with their last one. Otherwise outdated answers of the
        others could switch back from the new primary to the former one.
        """
        known = (one.last_answer for one in self._each if isinstance(one.last_answer, _Answer))
        address = max([*known, *answers], key=lambda answer: answer.epoch).primary
        former, self.named = self.named, address
        if former is not None and former != address:
            logger.info(
                "%s: the primary is %s now",
                self._url,
                address,
                extra={"broker": self._url, "reason": address},
            )
            self._on_switch(address)
        return address

    def _worst(self, problems: Sequence[Exception]) -> ConnectError:
        for problem in problems:
            if isinstance(problem, AuthError):
                return AuthError(
                    self._url,
                    "the sentinels refused the credentials: set the options sentinel_username and "
                    "sentinel_password",
                )
        unknown = [problem for problem in problems if "do not know" in str(problem)]
        for problem in [*unknown, *problems]:
            if isinstance(problem, ConnectError):
                return problem
        seconds = self._url.options.connect_timeout_seconds
        return ConnectError(self._url, f"no sentinel answers within {seconds:g} s")

    async def aclose(self) -> None:
        """Close every connection to the sentinels."""
        for sentinel in self._each:
            await sentinel.aclose()


def _with_port(address: Address) -> Address:
    return Address(address.host, address.port or DEFAULT_PORT)


class _Sentinel:
    """One sentinel. It is the sink and the owner of its own subscriber.

    Args:
        on_answer: called after each answer.

    Attributes:
        last_answer: the last answer, or the error instead of one.
    """

    def __init__(
        self,
        url: BrokerURL,
        service: str,
        address: Address,
        open_connection: Opener,
        on_answer: Callable[[], None],
    ) -> None:
        self._url = url
        self._service = service
        self._on_answer = on_answer
        reports = SentinelReports(url, address)
        self._pipeline = Pipeline(url, open_connection, reports=reports)
        self._subscriber = Subscriber(
            url,
            self,
            self,
            open_connection=open_connection,
            probe=None,
            pubsub=PLAIN,
            backoff=Backoff(cap_seconds=LONGEST_PAUSE_SECONDS),
            reports=reports,
        )
        self.last_answer: _Answer | Exception = ConnectError(url, "it has not been asked")
        self._throttle = LogThrottle(logger, url.options.log_interval_seconds)

    async def ask(self) -> _Answer:
        """Ask for the primary. A late answer is kept in `last_answer`.

        Raises:
            ConnectError: the sentinel cannot be reached, does not know the service, or gave a
                malformed answer.
        """
        self._subscriber.want(self._service, SWITCH)
        await asyncio.wait([self._question()])
        if isinstance(self.last_answer, Exception):
            raise self.last_answer
        return self.last_answer

    def _question(self) -> asyncio.Future[list[Any]]:
        # Between the promotion and the last replica's move, the elected sentinel still names the
        # former primary in MASTER, with the new epoch (Redis 7.0, Valkey 9.1).
        service = self._service.encode()
        question = self._pipeline.submit(
            [
                (b"SENTINEL", b"MASTER", service),
                (b"SENTINEL", b"GET-MASTER-ADDR-BY-NAME", service),
            ]
        )
        question.add_done_callback(self._learn)
        return question

    def _learn(self, question: asyncio.Future[list[Any]]) -> None:
        try:
            self.last_answer = self._understand(*question.result())
        except (NotSent, OutcomeUnknown) as exc:
            cause = exc.__cause__
            self.last_answer = cause if isinstance(cause, ConnectError) else self._error(str(exc))
        except ConnectError as exc:
            self.last_answer = exc
        except Exception as exc:
            self.last_answer = self._error(f"malformed answer of a sentinel: {exc!r}")
            self._throttle.log(
                logging.WARNING,
                "nonsense",
                "cannot use the answer of a sentinel: %s",
                self.last_answer,
                extra={"broker": self._url, "reason": self.last_answer},
            )
        else:
            self._subscriber.hurry()
            self._on_answer()

    def _understand(self, master: Any, address: Any) -> _Answer:
        """Parse the replies. Raises ConnectError, or any exception if they are malformed."""
        for reply in (master, address):
            if isinstance(reply, ReplyError):
                raise self._error(self._explain(reply))
        if address is None:
            raise self._error(f"the sentinels do not know the service {self._service!r}")
        facts = pairs(master)
        if not facts:
            raise ValueError("no fields")
        host, port = address
        return _Answer(
            epoch=int(facts.get(b"config-epoch", 0)),
            primary=Address(host.decode(), int(port)),
            replicas=int(facts.get(b"num-slaves", 0)),
        )

    def _error(self, problem: str) -> ConnectError:
        return ConnectError(self._url, problem)

    def _explain(self, error: ReplyError) -> str:
        if str(error).startswith("ERR unknown command"):
            return "the URL has to name sentinels, and this server is none"
        if str(error).startswith("NOPERM"):
            return f"the sentinels refuse to name the primary of {self._service!r}: {error}"
        return f"the sentinels do not know the service {self._service!r}: {error}"

    # `Sink` and `Owner`: reports of the subscriber

    async def deliver(self, batch: Sequence[tuple[str, bytes]]) -> None:
        """See `Sink`. The payload names the new primary without an epoch: ask for both."""
        service = self._service.encode()
        if any(payload.split(b" ", 1)[0] == service for _, payload in batch):
            self._question()

    def granted(self, channel: str) -> str | None:
        """See `Owner`. Ask, because a switch before the subscription was missed."""
        self._question()
        return None

    def lost(self, channels: Sequence[str], reason: str) -> None:
        """See `Sink` and `Owner`. `granted` asks again."""

    def displaced(self, channels: Sequence[str], error: ReplyError | None) -> None:
        """See `Owner`. Sentinels never do this."""

    def refused(self, channel: str, error: ReplyError) -> None:
        """See `Owner`."""
        self._throttle.log(
            logging.WARNING,
            "refused",
            "%s: a sentinel refuses the subscription to %s (%s): a new primary is noticed later",
            self._url,
            SWITCH.decode(),
            error,
            extra={"broker": self._url, "reason": error},
        )

    def unreachable(self, channels: Sequence[str], error: ConnectError) -> None:
        """See `Owner`. Ignored, because the other sentinels are enough."""

    async def aclose(self) -> None:
        """Close both connections."""
        await self._subscriber.aclose()
        await self._pipeline.aclose()


class _FixedCredentials:
    """A credential provider with fixed credentials."""

    max_age_seconds: float | None = None

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials

    async def credentials(self) -> Credentials:
        return self._credentials
