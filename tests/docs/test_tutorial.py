"""The project of docs/tutorial.md can be built from the page, and its tests pass."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from support.tutorial import build, console_lines, files, manage


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tutorial")
    build(folder)
    return folder


def test_its_own_tests_pass_and_can_fail(project: Path) -> None:
    assert re.search(r"Ran [4-9] tests", manage(project, "test"))
    models = project / "board" / "models.py"
    text = models.read_text(encoding="utf-8")
    models.write_text(text.replace("broadcast_on_commit(CHANNEL", "print(CHANNEL"))
    try:
        with pytest.raises(AssertionError, match="FAILED"):
            manage(project, "test")
    finally:
        models.write_text(text)


def test_django_has_nothing_to_complain_about(project: Path) -> None:
    assert "no issues" in manage(project, "check")
    assert "No changes" in manage(project, "makemigrations", "--check", "--dry-run")


def test_a_command_of_the_page_exists(project: Path) -> None:
    names = {
        shlex.split(line)[2] for line in console_lines() if line.startswith("python manage.py")
    }
    assert {"runserver", "sockets", "test"} <= names
    for name in names:
        manage(project, name, "--help")


def test_the_page_is_short_enough_for_half_an_hour() -> None:
    lines = [line for text in files().values() for line in text.splitlines() if line.strip()]
    assert len(lines) <= 330
