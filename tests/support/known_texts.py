"""The texts that the library may log or raise, read from its source."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from support.log_calls import log_calls

__all__ = ["KnownTexts"]

ROOT = Path(__file__).resolve().parents[2]
HOLE = "\0"
"""Stands for the parts of a text that vary."""
SPECIFIER = re.compile(r"%(?:\.\d+)?[srdgf]")
FEWEST_LETTERS = 5
"""Shorter constants say too little: almost every text would match one of them."""


def _constants(source: str) -> Iterator[str]:
    """The texts of a module, with a hole for each value that is formatted into them."""
    tree = ast.parse(source)
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if id(node) in docstrings:
            continue
        if isinstance(node, ast.JoinedStr):
            yield "".join(
                str(part.value) if isinstance(part, ast.Constant) else HOLE for part in node.values
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield SPECIFIER.sub(HOLE, node.value)


def _pattern(text: str, hole: str) -> re.Pattern[str]:
    return re.compile("(.*?)".join(map(re.escape, text.split(hole))), re.DOTALL)


class KnownTexts:
    """The texts of the library.

    Args:
        foreign: texts of other programs, which the library quotes.
    """

    def __init__(self, foreign: set[str]) -> None:
        words = {SPECIFIER.sub(HOLE, call.message) for call in log_calls()}
        for top in ("django_sockets", "backends"):
            for path in (ROOT / top).rglob("*.py"):
                if "testing" not in path.relative_to(ROOT).parts:
                    words.update(map(str.strip, _constants(path.read_text(encoding="utf-8"))))
        self._texts = {text for text in words if len(re.findall("[a-z]", text)) >= FEWEST_LETTERS}
        self._patterns = [_pattern(text, HOLE) for text in self._texts if HOLE in text]
        self._words = words | foreign

    def has(self, quoted: str) -> bool:
        """Whether the library may write a text like this, in which "..." stands for anything."""
        if "..." in quoted:
            abbreviated = _pattern(quoted, "...")
            if any(abbreviated.fullmatch(text) for text in self._texts):
                return True
        if quoted in self._texts:
            return True
        found = (pattern.fullmatch(quoted) for pattern in self._patterns)
        return any(one is not None and all(map(self._fits, one.groups())) for one in found)

    def _fits(self, inserted: str) -> bool:
        """Whether a text may be inserted into another one."""
        inserted = inserted.strip(" :;,()'")
        if not inserted or inserted.isdecimal() or inserted in self._words:
            return True
        parts = inserted.split("...")
        return self.has(inserted) or (len(parts) > 1 and all(map(self._fits, parts)))
