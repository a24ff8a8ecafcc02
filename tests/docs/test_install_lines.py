"""Every page shows how to install this version, because the package index has an older one."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    tomllib = None  # type: ignore[assignment]

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ["README.md", "CONTRIBUTING.md", "docs", "examples", "django_sockets", "backends"]
ENDINGS = {".md", ".py", ".txt", ".html", ".toml"}
FROM_INDEX = re.compile(r"pip install[^\n`]*?\bdjango[-_]sockets(?:\[[^\]\s]*\])?(?P<rest>[^\n]*)")
"""A name that is no path: what follows it decides which version is meant."""
FROM_CHECKOUT = re.compile(r"pip install '(?P<path>[./][^'\[]*)\[(?P<extras>[a-z,]+)\]'")


def pages() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--", *FOLDERS], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return [ROOT / name for name in listed.stdout.splitlines() if Path(name).suffix in ENDINGS]


def wrong(line: str) -> bool:
    found = FROM_INDEX.search(line)
    if found is None or FROM_CHECKOUT.search(line):
        return False
    return not found["rest"].startswith(">=4")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("pip install django-sockets", True),
        ("pip install 'django-sockets[runserver]'", True),
        ("run pip install django_sockets[glide] first", True),
        ("pip install celery django-sockets", True),
        ("pip install 'django-sockets>=3'", True),
        ("pip install 'django-sockets[runserver]>=4.0.dev0'", False),
        ("pip install '../django_sockets[runserver]'", False),
        ("pip install '../..[runserver]' celery", False),
        ("pip install celery", False),
    ],
)
def test_the_wrong_form_is_recognised(line: str, expected: bool) -> None:
    assert wrong(line) is expected


def test_no_page_and_no_error_installs_what_the_index_has() -> None:
    found = [
        f"{page.relative_to(ROOT)}:{number}: {line.strip()}"
        for page in pages()
        for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1)
        if wrong(line)
    ]
    assert found == []


def test_a_line_that_installs_the_checkout_names_extras_that_there_are() -> None:
    if tomllib is None:
        pytest.skip("tomllib is new in Python 3.11")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = 0
    for page in pages():
        for found in FROM_CHECKOUT.finditer(page.read_text(encoding="utf-8")):
            lines += 1
            assert set(found["extras"].split(",")) <= set(project["optional-dependencies"])
            if "examples" in page.parts:  # It is said to be run in that folder.
                assert (page.parent / found["path"]).resolve() == ROOT
    assert lines >= 4
