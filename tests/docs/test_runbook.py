"""docs/runbook.md names alerts, metrics, messages, commands and settings that exist.

An operator who follows it has no time to find out that a name has changed.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
from django.conf import global_settings

import django_sockets.errors
from django_sockets import closing
from django_sockets.backends.client.link_reports import SentinelReports
from django_sockets.conf import Settings
from django_sockets.connection import close_codes
from django_sockets.hub.stats import HubStats
from django_sockets.management.commands.sockets import Command
from django_sockets.observability.definitions import METRICS
from django_sockets.sockets import BaseSocketServer
from django_sockets.testing.servers import CacheServer
from django_sockets.url import BrokerOptions
from support.known_texts import KnownTexts
from support.queries import problems_of

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "runbook.md").read_text(encoding="utf-8")
RULES = (DOCS / "prometheus-alerts.yml").read_text(encoding="utf-8")
PROSE = re.sub(r"^ *```.*?^ *```", "", PAGE, flags=re.MULTILINE | re.DOTALL)
SPANS = [span.replace("\\|", "|") for span in re.findall(r"`([^`]+)`", PROSE)]
QUOTED = sorted(set(re.findall(r'"([^"]+)"', re.sub(r"`[^`]+`", "", PROSE))))
QUERIES = sorted({span for span in SPANS if re.search(r"\bdjango_sockets_\w", span)})
WITHOUT_END = {"Where to look", "Before you ask for help"}
"""Sections that are about no trouble."""
FOREIGN = {
    "Connection refused", "[Errno 104] Connection reset by peer",  # of the system
    "WRONGPASS", "NOPERM", "1013",
}  # fmt: skip
"""Texts of other programs in our messages."""


def anchor(title: str) -> str:
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def sections() -> dict[str, str]:
    """Title -> text."""
    parts = re.split(r"^## (.*)\n", PAGE, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def alerts() -> dict[str, str]:
    """Alert -> the file and section of its annotation."""
    rules = RULES.split("- alert: ")[1:]
    return {
        rule.split("\n", 1)[0]: (re.findall(r'^ +runbook: "(.*)"$', rule, re.MULTILINE) or [""])[0]
        for rule in rules
    }


# The structure


@pytest.mark.parametrize(("name", "link"), list(alerts().items()))
def test_each_alert_leads_to_a_section_about_it(name: str, link: str) -> None:
    texts = {f"docs/runbook.md#{anchor(title)}": text for title, text in sections().items()}
    assert f"`{name}`" in texts[link]
    assert re.search(rf"^\| `{name}` \|.*\(#{link.partition('#')[2]}\) \|$", PAGE, re.MULTILINE)


def test_the_table_at_the_top_has_every_section_in_order() -> None:
    table = PAGE.split("\n## ", maxsplit=1)[0]
    linked = re.findall(r"^\|.*\| \[([^\]]*)\]\(#([^)]*)\) \|$", table, re.MULTILINE)
    titles = [title for title in sections() if title != "Where to look"]
    assert linked == [(title, anchor(title)) for title in titles]
    assert set(re.findall(r"`(DjangoSockets\w+)`", table)) == set(alerts())


def test_each_section_says_how_to_see_that_the_trouble_is_over() -> None:
    without = {title for title, text in sections().items() if "\nIt is over when " not in text}
    assert without == WITHOUT_END


# Metrics


@pytest.mark.parametrize("query", QUERIES)
def test_each_query_has_metrics_and_labels_that_exist(query: str) -> None:
    assert problems_of(query) == []


def test_the_values_of_labels_exist() -> None:
    known = {
        (labels[1], value)
        for _, _, labels, _, sources, _ in METRICS.values()
        for value in sources.values()
        if len(labels) > 1
    }
    known |= {("outcome", "error"), ("outcome", "accepted"), ("outcome", "ok")}
    known |= {("link", SentinelReports.link)}
    known |= {("code", code) for code in documented_codes()}
    used = {pair for query in QUERIES for pair in re.findall(r'(\w+)!?="([^"]*)"', query)}
    assert used
    assert used - known == set()


def test_prometheus_can_parse_each_query(
    missing: Callable[[str], NoReturn], tmp_path: Path
) -> None:
    promtool = shutil.which("promtool") or missing("promtool of Debian's package prometheus")
    rules = [{"record": f"query_{n}", "expr": query} for n, query in enumerate(QUERIES)]
    file = tmp_path / "queries.yml"
    file.write_text(json.dumps({"groups": [{"name": "queries", "rules": rules}]}))
    checked = subprocess.run(
        [promtool, "check", "rules", str(file)], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


# Messages


@pytest.fixture(scope="module")
def texts() -> KnownTexts:
    return KnownTexts(FOREIGN)


@pytest.mark.parametrize("quoted", QUOTED)
def test_each_message_in_quotation_marks_is_one_of_the_library(
    quoted: str, texts: KnownTexts
) -> None:
    assert texts.has(quoted)


@pytest.mark.parametrize(
    "wrong",
    [
        "cannot publsh: ...",
        "cannot publish ...",
        "cannot publish: ...: the server refused the password: WRONGPASS ...",
        "...: a handler fails: ...",
        "the broker was ...",
        "...: the primary is ... again",
        "gap signalled: nothing of this kind",
    ],
)
def test_a_wrong_message_is_found(wrong: str, texts: KnownTexts) -> None:
    assert not texts.has(wrong)


# Commands and settings


def commands_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    raise AssertionError("it has no subcommands")


def test_each_command_exists_with_its_options() -> None:
    commands = commands_of(Command().create_parser("manage.py", "sockets"))
    used = [span for span in SPANS if "manage.py sockets" in span]
    assert len(used) > 10
    for span in used:
        name, *arguments = span.partition("manage.py sockets ")[2].split()
        assert name in commands, span
        options = {one.partition("=")[0] for one in arguments if one.startswith("--")}
        assert not options or options <= set(commands[name]._option_string_actions), span


@pytest.mark.parametrize("span", [span for span in SPANS if span.startswith("from django_sockets")])
def test_each_line_for_the_shell_imports_what_is_there(span: str) -> None:
    compile(span, "runbook", "exec")
    exec(span.partition(";")[0], {})


def known_names() -> set[str]:
    names = {field.name for field in dataclasses.fields(BrokerOptions)}
    names |= {field.name for field in dataclasses.fields(Settings)}
    names |= set(dir(BaseSocketServer)) | set(HubStats.__annotations__)
    names |= set(closing.__all__) | set(METRICS) | set(dir(django_sockets.errors))
    return names | {"tls_ca_file", "tls_verify", "metrics_view", "mark_process_dead"}


def test_each_setting_exists() -> None:
    used = {name for span in SPANS for name in re.findall(r"^[a-z]+(?:_[a-z]+)+(?==|$)", span)}
    of_the_broker = {
        "client_output_buffer_limit_disconnections", "connected_clients", "evicted_keys",
        "rejected_connections",
    }  # fmt: skip
    used -= {"django_sockets", *of_the_broker, *QUERIES}
    assert {"drain_seconds", "handler_threads", "presence_lease_seconds"} <= used
    assert used - known_names() == set()


def test_each_setting_of_django_exists() -> None:
    documented = "".join(
        (DOCS / name).read_text(encoding="utf-8") for name in ("django.md", "observability.md")
    )
    used = {span for span in SPANS if re.fullmatch(r"[A-Z]+(?:_[A-Z]+)+", span)}
    used -= {"CERTIFICATE_VERIFY_FAILED"}
    assert {"DJANGO_SOCKETS_CONFIG", "SECRET_KEY_FALLBACKS"} <= used
    assert {
        name for name in used if not hasattr(global_settings, name) and name not in documented
    } == set()


def test_each_fact_about_the_broker_is_one_that_it_tells(valkey_server: CacheServer) -> None:
    import redis

    with contextlib.closing(redis.Redis(port=valkey_server.port)) as client:
        told = set(client.info("all"))
        settings = set(client.config_get("*"))
        commands = {name.lower() for name in client.command()}
    assert {"connected_clients", "rejected_connections", "evicted_keys"} <= told
    assert {"client-output-buffer-limit", "maxclients", "maxmemory", "timeout"} <= settings
    assert {"info", "slowlog", "client", "pubsub", "flushall", "config"} <= commands


# Close codes


def documented_codes() -> set[str]:
    return set(re.findall(r"^\| (\d{4}) ", close_codes.__doc__ or "", re.MULTILINE))


def test_each_close_code_is_one_of_the_library() -> None:
    used = set(re.findall(r"(?<![\d.,])(?:10[01]\d|3\d{3}|4[04]\d\d)(?![\d.,]\d|\d)", PROSE))
    assert {"1011", "1012", "1013", "4401"} <= used
    # A client sees 1006 if there was no close frame (RFC 6455, section 7.1.5). 4403 is one of the
    # codes "4400 to 4499", which stand for HTTP statuses.
    assert used - documented_codes() == {"1006", "4403"}


# Links


@pytest.mark.parametrize(
    "name", ["../README.md", "observability.md", "production.md", "troubleshooting.md"]
)
def test_the_pages_that_an_operator_reads_lead_here(name: str) -> None:
    assert "runbook.md" in (DOCS / name).read_text(encoding="utf-8")
