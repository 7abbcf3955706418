"""Alert rules and the dashboard: every metric and label exists, every alert has its section in the operator's page."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from policies.load import load_yaml
from tests.fakes.metrics import documented

PACKAGING = Path(__file__).parents[2] / "packaging"
ALERTS, PAGE = PACKAGING / "alerts.yaml", PACKAGING / "README.md"
DASHBOARD: dict[str, Any] = json.loads((PACKAGING / "dashboard.json").read_text())
PROMETHEUS_OWN = {"up": {"job", "instance"}}
OF_A_TARGET = {"job", "instance", "le"}
FIRING = """rule_files: [{alerts}]
evaluation_interval: 1m
tests:
  - interval: 1m
    input_series:
      - {{series: 'keymoot_enclave_convictions_total{{instance="a",kind="presign"}}', values: '_ _ _ 1 1 1 1'}}
      - {{series: 'keymoot_coordinator_presignatures{{instance="c",committee="1-2-3"}}', values: '5x30'}}
      - {{series: 'keymoot_coordinator_pool_mark{{instance="c",committee="1-2-3",mark="low"}}', values: '10x30'}}
      - {{series: 'keymoot_coordinator_pool_mark{{instance="c",committee="1-2-3",mark="high"}}', values: '20x30'}}
      - {{series: 'keymoot_coordinator_signer_up{{instance="c",signer="s1"}}', values: '1 1 0 0 0'}}
    alert_rule_test:
      - eval_time: 4m
        alertname: KeymootConviction
        exp_alerts: [{{exp_labels: {{severity: critical, instance: a, kind: presign}}, exp_annotations: {{summary:
          A signer was convicted in presign, runbook: README.md#keymootconviction}}}}]
      - eval_time: 20m
        alertname: KeymootPoolLow
        exp_alerts: [{{exp_labels: {{severity: warning, instance: c, committee: 1-2-3}}, exp_annotations: {{summary:
          Pool 1-2-3 stays below its low mark, runbook: README.md#keymootpoollow}}}}]
      - {{eval_time: 1m, alertname: KeymootSignerAway, exp_alerts: []}}
      - eval_time: 4m
        alertname: KeymootSignerAway
        exp_alerts: [{{exp_labels: {{severity: critical, instance: c, signer: s1}}, exp_annotations: {{summary:
          Signer s1 is away, runbook: README.md#keymootsigneraway}}}}]
"""


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An alert as Prometheus reads it."""

    alert: str
    expr: str
    labels: dict[str, str]
    annotations: dict[str, str]
    for_: str = msgspec.field(name="for", default="0s")


class Group(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    rules: list[Rule]


class File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    groups: list[Group]


RULES = [rule for group in load_yaml(ALERTS, File).groups for rule in group.rules]
QUERIES = [(panel["title"], target["expr"]) for panel in DASHBOARD["panels"] for target in panel["targets"]]


def series() -> dict[str, set[str]]:
    """Labels of every series by its name."""
    found = {name: set(labels) for name, labels in PROMETHEUS_OWN.items()}
    for name, (kind, labels) in documented().items():
        ends = ("_bucket", "_sum", "_count") if kind == "histogram" else ("",)
        found |= {name + end: set(labels) | OF_A_TARGET for end in ends}
    return found


def used(expr: str) -> Iterator[tuple[str, set[str]]]:
    """Every metric of an expression, with the labels that it is selected by."""
    for name, labels in re.findall(r"\b(keymoot_\w+|up\b)(?:\{([^}]*)\})?", re.sub(r'=~?"keymoot[^"]*"', '=""', expr)):
        yield name, set(re.findall(r"(\w+)(?:=~|!=|!~|=)", labels))


@pytest.mark.parametrize(
    ("name", "expr"), [*((rule.alert, rule.expr) for rule in RULES), *QUERIES], ids=lambda value: value[:40]
)
def test_every_metric_and_label_exists(name: str, expr: str) -> None:
    known, seen = series(), list(used(expr))
    assert seen
    for metric, labels in seen:
        assert metric in known, f"{name}: no metric {metric}"
        assert labels <= known[metric]
    grouped = [label for names in re.findall(r"\bby \(([^)]*)\)", expr) for label in names.split(", ")]
    assert set(grouped) <= set.union(*(known[metric] for metric, _ in seen))
    assert expr.count("(") == expr.count(")")


def test_this_test_sees_a_metric_that_does_not_exist() -> None:
    with pytest.raises(AssertionError, match="no metric keymoot_enclave_sleeps"):
        test_every_metric_and_label_exists("x", "rate(keymoot_enclave_sleeps[5m]) > 0")


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.alert)
def test_every_alert_has_its_runbook(rule: Rule) -> None:
    assert rule.labels["severity"] in ("critical", "warning", "info")
    assert rule.annotations["runbook"] == f"README.md#{rule.alert.lower()}"
    section = re.search(rf"^### {rule.alert}\n\n(.+?)(?=\n###|\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert section is not None
    assert len(section[1]) > 60
    for label in re.findall(r"\$labels\.(\w+)", rule.annotations["summary"]):
        assert any(label in series()[metric] for metric, _ in used(rule.expr))


def test_sections_and_alerts_are_the_same() -> None:
    assert re.findall(r"^### (Keymoot\w+)$", PAGE.read_text(), re.MULTILINE) == [rule.alert for rule in RULES]
    assert len({rule.alert for rule in RULES}) == len(RULES)


def test_links_of_the_page_lead_somewhere() -> None:
    text = PAGE.read_text()
    titles = {
        re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-")
        for title in re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    }
    assert set(re.findall(r"\]\(#([^)]*)\)", text)) <= titles
    assert all((PACKAGING / file).exists() for file in re.findall(r"\]\(([\w./]+\.md)\)", text))


def test_panels_do_not_lie_on_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        grid = panel["gridPos"]
        cells = {(grid["x"] + x, grid["y"] + y) for x in range(grid["w"]) for y in range(grid["h"])}
        assert not cells & taken
        taken |= cells
    assert max(x for x, _ in taken) == 23
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool of Debian's prometheus")
def test_prometheus_takes_the_rules_and_fires(tmp_path: Path) -> None:
    subprocess.run(["promtool", "check", "rules", str(ALERTS)], check=True, capture_output=True)
    test = tmp_path / "test.yaml"
    test.write_text(FIRING.format(alerts=ALERTS))
    done = subprocess.run(["promtool", "test", "rules", str(test)], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
