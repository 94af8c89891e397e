"""Dashboard, alerts and set-up in `deploy/observability`, as Prometheus' own checker and Grafana's rules have them."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from tests.support.observability import FOLDER, alert_expressions, dashboard, expressions, panels, with_values
from tests.support.promtool import needs_promtool, promtool

pytestmark = pytest.mark.integration


@needs_promtool
def test_alerts_fire_when_they_should_and_only_then() -> None:
    said = promtool("test", "rules", "alerts_test.yml", folder=FOLDER)

    assert "SUCCESS" in said


@needs_promtool
def test_rules_and_set_up_are_what_prometheus_takes() -> None:
    assert f"{len(alert_expressions())} rules found" in promtool("check", "rules", "alerts.yml", folder=FOLDER)
    promtool("check", "config", "--syntax-only", "prometheus.yml", folder=FOLDER)


@needs_promtool
def test_every_expression_of_the_dashboard_can_be_parsed(tmp_path: Path) -> None:
    found = [each for each in expressions() if not each.startswith("label_values(")]
    rules = [{"record": f"r:{number}", "expr": with_values(each)} for number, each in enumerate(found)]
    (tmp_path / "rules.yml").write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))

    assert f"{len(found)} rules found" in promtool("check", "rules", str(tmp_path / "rules.yml"))


def test_the_tests_of_alerts_try_each_one() -> None:
    alerts, tests = ((FOLDER / name).read_text() for name in ("alerts.yml", "alerts_test.yml"))
    names = {line.split()[-1] for line in alerts.splitlines() if "- alert:" in line}
    fires = {
        block.split()[0] for block in tests.split("alertname: ")[1:] if "exp_alerts" in block.split("eval_time")[0]
    }

    assert len(names) == len(alert_expressions())
    assert names == fires


def test_panels_have_places_of_their_own_and_a_source_that_can_be_chosen() -> None:
    every = dashboard()["panels"]
    ids = [panel["id"] for panel in every]
    cells = [
        (x, y)
        for panel in every
        for place in [panel["gridPos"]]
        for x, y in itertools.product(
            range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
        )
    ]

    assert len(ids) == len(set(ids))
    assert len(cells) == len(set(cells)), "two panels lie over each other"
    assert max(x for x, _ in cells) < 24
    for panel in panels():
        assert panel["title"]
        assert panel["datasource"]["uid"] == "${datasource}"
        assert {target["datasource"]["uid"] for target in panel["targets"]} == {"${datasource}"}
        refs = [target["refId"] for target in panel["targets"]]
        assert len(refs) == len(set(refs))
    provisioning = FOLDER / "grafana" / "provisioning"
    assert "type: prometheus" in (provisioning / "datasources" / "prometheus.yml").read_text()
    assert "path: /var/lib/grafana/dashboards" in (provisioning / "dashboards" / "packtrain.yml").read_text()
