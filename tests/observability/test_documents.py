"""The tables, the dashboard and the alert rules name metrics that exist, and the rules fire."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from django_sockets.observability.definitions import METRICS
from support.queries import problems_of

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "observability.md").read_text(encoding="utf-8")
RULES = DOCS / "prometheus-alerts.yml"
DASHBOARD = json.loads((DOCS / "grafana-dashboard.json").read_text(encoding="utf-8"))


def dashboard_queries() -> Iterator[tuple[str, str]]:
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"]


def rule_queries() -> Iterator[tuple[str, str]]:
    text = RULES.read_text(encoding="utf-8")
    for rule in text.split("- alert: ")[1:]:
        name = rule.split("\n", 1)[0]
        yield name, rule.partition("expr:")[2].partition("labels:")[0]


def test_the_table_has_each_metric_with_its_type_and_labels() -> None:
    rows = re.findall(r"^\| `(django_sockets_\w+)` \| (\w+) \| (.*?) \|", PAGE, re.MULTILINE)
    documented = [
        (name, kind, tuple(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows
    ]
    assert documented == [(one.full_name, one.kind, one.labels) for one in METRICS.values()]


@pytest.mark.parametrize(("title", "query"), list(dashboard_queries()))
def test_each_query_of_the_dashboard_has_metrics_and_labels_that_exist(
    title: str, query: str
) -> None:
    assert problems_of(query) == []


def test_the_dashboard_is_complete() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        for target in panel.get("targets", []):
            for label in re.findall(r"{{(\w+)}}", target["legendFormat"]):
                assert re.search(rf"by \([^)]*\b{label}\b", target["expr"]), panel["title"]
    variables = DASHBOARD["templating"]["list"]
    assert {variable["name"] for variable in variables} == {"source", "job"}
    assert problems_of(variables[1]["query"]["query"]) == []
    places = [(one["gridPos"]["x"], one["gridPos"]["y"]) for one in panels]
    assert len(set(places)) == len(places)


@pytest.mark.parametrize(("name", "query"), list(rule_queries()))
def test_each_rule_has_metrics_and_labels_that_exist_and_a_documented_reason(
    name: str, query: str
) -> None:
    assert problems_of(query) == []
    assert re.search(rf"^\| `{name}` \| .+ \| .+ \|$", PAGE, re.MULTILINE)


@pytest.mark.parametrize(
    "query",
    [
        "rate(django_sockets_gap_total[5m])",
        'rate(django_sockets_gaps_total{channel="room"}[5m])',
        "sum by (user) (django_sockets_slow_clients)",
        "rate(django_sockets_publish_seconds[5m])",
        "up == 0",
    ],
)
def test_a_wrong_query_is_found(query: str) -> None:
    assert problems_of(query)


# The rules, by promtool

ALERTS = {
    "DjangoSocketsGaps": (
        ['gaps_total{reason="link"} 0+1x60'],
        ['gaps_total{reason="link"} 0x5 500x60', 'gaps_total{reason="overflow"} 0+9x60'],
    ),
    "DjangoSocketsPublishErrors": (
        ["publish_errors_total 0+2x60", "publish_seconds_count 0+100x60"],
        ["publish_errors_total 0+1x60", "publish_seconds_count 0+200x60"],
    ),
    "DjangoSocketsPublishSlow": (
        ['publish_seconds_bucket{le="0.5"} 0+90x60', 'publish_seconds_bucket{le="1"} 0+100x60',
         'publish_seconds_bucket{le="+Inf"} 0+100x60'],
        ['publish_seconds_bucket{le="0.5"} 0+100x60', 'publish_seconds_bucket{le="+Inf"} 0+100x60'],
    ),
    "DjangoSocketsBrokerLag": (
        ['broker_lag_seconds_bucket{le="1"} 0+50x60', 'broker_lag_seconds_bucket{le="5"} 0+99x60',
         'broker_lag_seconds_bucket{le="+Inf"} 0+99x60'],
        ['broker_lag_seconds_bucket{le="1"} 0+99x60',
         'broker_lag_seconds_bucket{le="+Inf"} 0+99x60'],
    ),
    "DjangoSocketsSlowClients": (
        ["slow_clients 6x60", "open_sockets 100x60"],
        ["slow_clients 4x60", "open_sockets 100x60"],
    ),
    "DjangoSocketsHealingSlow": (
        ['healing_seconds_bucket{le="10"} 0+1x60', 'healing_seconds_bucket{le="30"} 0+9x60',
         'healing_seconds_bucket{le="+Inf"} 0+9x60'],
        ['healing_seconds_bucket{le="10"} 0+9x60', 'healing_seconds_bucket{le="+Inf"} 0+9x60'],
    ),
    "DjangoSocketsReconnects": (
        ['links_lost_total{link="subscribing"} 0+1x60'],
        ['links_lost_total{link="subscribing"} 0x20 1x40',
         'links_lost_total{link="sentinel"} 0+1x60',
         'connect_errors_total{link="sentinel"} 0+60x60'],
    ),
    "DjangoSocketsPresenceLeases": (
        ["presence_leases_missed_total 0+1x60"],
        ["presence_leases_missed_total 0x40 1x20"],
    ),
    "DjangoSocketsHandlerErrors": (
        ['hook_calls_total{socket="a.B",outcome="error"} 0+2x60',
         'hook_calls_total{socket="a.B",outcome="ok"} 0+98x60'],
        ['hook_calls_total{socket="a.B",outcome="refused"} 0+50x60',
         'hook_calls_total{socket="a.B",outcome="ok"} 0+50x60'],
    ),
}  # fmt: skip
"""Alert -> series with which it fires after 55 minutes, and series with which it does not."""


@pytest.fixture
def promtool(missing: Callable[[str], NoReturn]) -> str:
    return shutil.which("promtool") or missing("promtool of Debian's package prometheus")


def test_promtool_accepts_the_rules(promtool: str) -> None:
    checked = subprocess.run(
        [promtool, "check", "rules", str(RULES)], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert f"{len(ALERTS)} rules found" in checked.stdout


def test_prometheus_can_parse_each_query_of_the_dashboard(promtool: str, tmp_path: Path) -> None:
    rules = []
    for number, (_, query) in enumerate(dashboard_queries()):
        expression = query.replace("$__rate_interval", "5m").replace("$job", ".*")
        assert "$" not in expression
        rules.append({"record": f"panel_{number}", "expr": expression})
    file = tmp_path / "panels.yml"
    file.write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))
    checked = subprocess.run(
        [promtool, "check", "rules", str(file)], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_each_rule_fires_when_it_should_and_not_before(promtool: str, tmp_path: Path) -> None:
    assert [name for name, _ in rule_queries()] == list(ALERTS)
    tests = []
    for name, cases in ALERTS.items():
        for fires, lines in zip((True, False), cases, strict=True):
            inputs = []
            for line in lines:
                selector, values = line.split(" ", 1)
                inputs.append({"series": f"django_sockets_{selector}", "values": values})
            expression = f'count(ALERTS{{alertname="{name}",alertstate="firing"}}) or vector(0)'
            expected = [{"labels": "{}", "value": int(fires)}]
            query = {"expr": expression, "eval_time": "55m", "exp_samples": expected}
            tests.append({"interval": "1m", "input_series": inputs, "promql_expr_test": [query]})
    file = tmp_path / "test.yml"  # JSON is YAML.
    file.write_text(
        json.dumps({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": tests})
    )
    tested = subprocess.run(
        [promtool, "test", "rules", str(file)], capture_output=True, text=True, check=False
    )
    assert tested.returncode == 0, tested.stdout + tested.stderr
