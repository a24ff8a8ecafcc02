"""The examples on the pages for Django users are valid Python, and their links work."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = """
    browser.md channels.md django.md checks.md history.md limits.md migration.md production.md
    observability.md presence.md promises.md runbook.md server-extension.md server-sent-events.md
    shutdown.md sockets.md tutorial.md
""".split()


@pytest.mark.parametrize("name", PAGES)
def test_what_is_shown_compiles_and_imports_what_is_there(name: str) -> None:
    text = (DOCS / name).read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert blocks
    for block in blocks:
        compile(block, name, "exec")
        for line in re.findall(r"^from django_sockets.*$", block, re.MULTILINE):
            exec(line, {})


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_to_files_and_headings(name: str) -> None:
    text = (DOCS / name).read_text(encoding="utf-8")
    for target, heading in re.findall(r"\]\(([^)#:]+)(?:#([^)]*))?\)", text):
        page = DOCS / target
        assert page.exists(), target
        if heading:
            titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
            assert heading in anchors, f"{target}#{heading}"
