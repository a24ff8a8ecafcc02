"""The question of a survey and the answer to it, as messages between processes.

The question is an order on the control channel. It names a channel for the answers, which only the
asking process subscribes to. Applications can use neither channel, because of the control character
in its name.
"""

from __future__ import annotations

import json
import os
import re
from typing import Any, NamedTuple

from ...codec import decode_json
from .report import ProcessReport

__all__ = ["Question", "new_answers_channel", "pack_answer", "read_answer", "read_question"]

_ANSWERS = "\x01answers:"
_HEX = re.compile("[0-9a-f]{16}")


class Question(NamedTuple):
    """One question.

    Attributes:
        id: identifies it in the answers.
        answers: the channel for the answers.
    """

    id: str
    answers: str

    def pack(self) -> bytes:
        """The question as a message on the control channel."""
        key = self.answers.removeprefix(_ANSWERS)
        return json.dumps({"survey": {"id": self.id, "answers": key}}).encode()


def new_answers_channel() -> str:
    """A channel for answers that no other process uses."""
    return _ANSWERS + os.urandom(8).hex()


def read_question(payload: bytes) -> Question | None:
    """The question in a message on the control channel; None for another order, or a wrong one."""
    try:
        order = decode_json(payload)["survey"]
        number, key = order["id"], order["answers"]
        if _HEX.fullmatch(number) and _HEX.fullmatch(key):
            return Question(number, _ANSWERS + key)
    except Exception:  # noqa: S110 - also RecursionError
        pass
    return None


def pack_answer(question: str, report: ProcessReport) -> bytes:
    """The answer to the question with this id."""
    return json.dumps({"question": question, "report": report}).encode()


def read_answer(payload: bytes) -> tuple[str, ProcessReport] | None:
    """The id of the question, and the report; None for a message that is not an answer.

    Fields that a newer version adds are passed on. A report without a field of this version, such
    as one of an older version, is completed.
    """
    try:
        answer: dict[str, Any] = decode_json(payload)
        return str(answer["question"]), _completed(answer["report"])
    except Exception:  # Also RecursionError.
        return None


def _completed(found: dict[str, Any]) -> ProcessReport:
    return ProcessReport(
        process=str(found["process"]),
        host=str(found.get("host", "")),
        pid=int(found.get("pid", 0)),
        state=str(found.get("state", "")),
        started=float(found.get("started", 0)),
        seconds=float(found.get("seconds", 0)),
        python=str(found.get("python", "")),
        version=str(found.get("version", "")),
        numbers={str(name): int(value) for name, value in found.get("numbers", {}).items()},
        sockets={str(name): int(value) for name, value in found.get("sockets", {}).items()},
        channels=[(str(name), int(value)) for name, value in found.get("channels", [])],
        users=[(str(name), int(value)) for name, value in found.get("users", [])],
        slow=[
            {
                "socket": str(one["socket"]),
                "user": None if one["user"] is None else str(one["user"]),
                "messages": int(one["messages"]),
                "bytes": int(one["bytes"]),
            }
            for one in found.get("slow", [])
        ],
    )
