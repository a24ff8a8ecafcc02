"""Every example has a short page with two commands, and a line in the README."""

from __future__ import annotations

import re

import pytest

from support.example_process import EXAMPLES, commands

ROOT = EXAMPLES.parent
NAMES = sorted(path.parent.name for path in EXAMPLES.glob("*/README.md"))


def test_every_example_has_a_page_and_a_line_in_the_readme() -> None:
    folders = {path.name for path in EXAMPLES.iterdir() if any(path.glob("*.py"))}
    assert folders == {*NAMES, "demo"}
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    section = re.search(r"^## Examples\n(.*?)^## ", readme, re.MULTILINE | re.DOTALL)
    assert section is not None
    assert {
        name.strip("/") for name in re.findall(r"\]\(examples/([^)]*)\)", section[1])
    } == folders


@pytest.mark.parametrize("name", NAMES)
def test_its_page_is_short_and_names_what_is_there(name: str) -> None:
    text = (EXAMPLES / name / "README.md").read_text(encoding="utf-8")
    assert 10 <= len(text.splitlines()) <= 20
    assert len(commands(name)) == 2
    for file in re.findall(r"`([\w/]+\.(?:py|js))`", text):
        assert (EXAMPLES / name / file).exists(), file
