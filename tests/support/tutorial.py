"""The project that docs/tutorial.md describes, built from the blocks of the page."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from support.shop_process import environment

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PATH = re.compile(r"^(?:#|//|<!--) ([\w/.]+)(?: -->)?\n")


def files() -> dict[str, str]:
    """The blocks that begin with the path of a file: path -> text."""
    found = {}
    for language, text in BLOCK.findall(PAGE):
        if language != "console":
            path = PATH.match(text)
            assert path, f"the block does not begin with a path:\n{text}"
            assert path[1] not in found
            found[path[1]] = text[path.end() :]
    return found


def console_lines() -> list[str]:
    blocks = [text for language, text in BLOCK.findall(PAGE) if language == "console"]
    return [line for text in blocks for line in text.splitlines()]


def manage(folder: Path, *arguments: str) -> str:
    """Run `manage.py`, which must succeed."""
    ended = subprocess.run(
        [sys.executable, "manage.py", *arguments],
        cwd=folder,
        env=environment(PYTHONPATH=str(ROOT), DJANGO_SETTINGS_MODULE="mysite.settings"),
        capture_output=True,
        text=True,
        check=False,
        timeout=150,
    )
    output = ended.stdout + ended.stderr
    assert ended.returncode == 0, output
    assert "Traceback" not in output, output
    return output


def build(folder: Path) -> None:
    """Follow the page up to its tests."""
    for arguments in (["startproject", "mysite", str(folder)], ["startapp", "board"]):
        subprocess.run(
            [sys.executable, "-m", "django", *arguments], cwd=folder, check=True, timeout=150
        )
    for name, text in files().items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        before = path.read_text(encoding="utf-8") if name.endswith("settings.py") else ""
        path.write_text(before + text, encoding="utf-8")
    manage(folder, "makemigrations")
    manage(folder, "migrate")
