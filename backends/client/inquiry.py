"""Questions to a server that are repeated: its role, and its run id while that is unknown.

A refusal may pass: the server was busy with a script, or an administrator corrects an ACL. So no
refusal switches a check off. After an error of `NOT_NOW` the question is repeated at the next turn,
after any other error when a pause is over that doubles from `FIRST_PAUSE_SECONDS` up to
`LONGEST_PAUSE_SECONDS`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from .connection import INFO, ROLE, Identity, Link, ReplyError, read_role, read_run_id

__all__ = ["FIRST_PAUSE_SECONDS", "LONGEST_PAUSE_SECONDS", "Inquiry", "Pause"]

FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 30.0
NOT_NOW = ("BUSY", "LOADING", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN")
"""How errors begin whose cause soon ends by itself."""


class Pause:
    """When to ask again for what was refused."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._until = 0.0

    @property
    def over(self) -> bool:
        """Whether it is time to ask."""
        return not self._seconds or asyncio.get_running_loop().time() >= self._until

    def refused(self, error: ReplyError) -> float:
        """Note a refusal; returns the seconds until the question may be asked again."""
        if str(error).startswith(NOT_NOW):
            return 0.0
        self._seconds = min(max(FIRST_PAUSE_SECONDS, 2 * self._seconds), LONGEST_PAUSE_SECONDS)
        self._until = asyncio.get_running_loop().time() + self._seconds
        return self._seconds

    def granted(self) -> None:
        """Note that the question was answered."""
        self._seconds = 0.0


class Inquiry:
    """The questions to the server at the other end of one link after another."""

    def __init__(self) -> None:
        self._role, self._info = Pause(), Pause()

    def questions(self, identity: Identity) -> list[tuple[bytes, ...]]:
        """The commands to send now, 0 to 2.

        Args:
            identity: what is known of the server.
        """
        questions: list[tuple[bytes, ...]] = []
        if self._role.over:
            questions.append(ROLE)
        if not identity.run_id and self._info.over:
            questions.append(INFO)
        return questions

    def learn(
        self, link: Link, questions: Sequence[tuple[bytes, ...]], replies: Sequence[Any]
    ) -> None:
        """Take the replies to `questions` into the link's identity; nonsense changes nothing."""
        for question, reply in zip(questions, replies, strict=True):
            pause = self._role if question is ROLE else self._info
            if isinstance(reply, ReplyError):
                pause.refused(reply)
                continue
            pause.granted()
            if question is ROLE:
                link.identity = link.identity._replace(role=read_role(reply) or link.identity.role)
            else:
                link.identity = link.identity._replace(run_id=read_run_id(reply))
