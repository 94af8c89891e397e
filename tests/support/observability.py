"""What `deploy/observability` asks Prometheus: the expressions of dashboard and alerts, and the names in them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[2] / "deploy" / "observability"
DASHBOARD = FOLDER / "grafana" / "dashboards" / "packtrain.json"

_NAME = re.compile(r"\b(packtrain_[a-z0-9_]+)(?:\{([^}]*)\})?")
_BY = re.compile(r"\bby \(([^)]*)\)")
_EXPR = re.compile(r"^( *)(?:- )?expr: (?:\|\n((?:\1 +.*\n)+)|(.*)\n)", re.MULTILINE)
_OF_HISTOGRAMS = re.compile(r"_(bucket|sum|count)$")


def dashboard() -> dict[str, Any]:
    """The dashboard."""
    found = json.loads(DASHBOARD.read_text())
    assert isinstance(found, dict)
    return found


def panels() -> list[dict[str, Any]]:
    """Its panels, without the rows between them."""
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def expressions() -> Iterator[str]:
    """Of dashboard, its variables and alerts."""
    for panel in panels():
        yield from (target["expr"] for target in panel["targets"])
    for variable in dashboard()["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["query"]["query"]
    yield from alert_expressions()


def alert_expressions() -> list[str]:
    """Of alerts alone."""
    return [block or line for _, block, line in _EXPR.findall((FOLDER / "alerts.yml").read_text())]


def names_in(expression: str, families: dict[str, str]) -> set[tuple[str, frozenset[str]]]:
    """Metrics that an expression names, by their families, with the labels that it chooses them by.

    Args:
        families: Known ones with their types: only a histogram's name has endings.
    """
    found = set()
    for name, matchers in _NAME.findall(expression):
        family = _OF_HISTOGRAMS.sub("", name)
        labels = frozenset(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers)) - {"le"}
        found.add((family if families.get(family) == "histogram" else name, labels))
    return found


def labels_by(expression: str) -> set[str]:
    """Labels that an expression groups by."""
    return {label.strip() for group in _BY.findall(expression) for label in group.split(",")}


def with_values(expression: str) -> str:
    """With values for the dashboard's variables."""
    for name, value in {"$__rate_interval": "5m", "$__range": "1h", "$model": ".*", "$node": ".*"}.items():
        expression = expression.replace(name, value)
    return expression
