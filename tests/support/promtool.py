"""Prometheus' own checker, and what a scrape says; tests that need the checker are skipped where there is none."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

_PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(_PROMTOOL is None, reason="there is no promtool: apt-get install prometheus")

_FAMILY = re.compile(r"^# TYPE (\S+) (\w+)$", re.MULTILINE)
_SAMPLE = re.compile(r"^([a-z0-9_]+)(?:\{(.*)\})? (\S+)$")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')

Labels = frozenset[tuple[str, str]]


def promtool(*arguments: str, stdin: str = "", folder: Path | None = None) -> str:
    """What it says; it has to be content."""
    assert _PROMTOOL
    ran = subprocess.run([_PROMTOOL, *arguments], input=stdin, capture_output=True, text=True, cwd=folder, timeout=60)
    said = ran.stdout + ran.stderr
    assert ran.returncode == 0, said
    return said


class Scrape:
    """The text of `/metrics`, read."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.families: dict[str, str] = dict(_FAMILY.findall(text))  # name -> type
        self.samples: dict[tuple[str, Labels], float] = {}
        for line in text.splitlines():
            if found := _SAMPLE.match(line):
                self.samples[found[1], frozenset(_LABEL.findall(found[2] or ""))] = float(found[3])

    def value(self, name: str, **labels: str) -> float | None:
        """Of one sample."""
        return self.samples.get((name, frozenset(labels.items())))

    def sum(self, name: str, **labels: str) -> float:
        """Of all samples with these labels."""
        wanted = frozenset(labels.items())
        return sum(value for (each, found), value in self.samples.items() if each == name and wanted <= found)

    def labels(self, family: str) -> set[str]:
        """Labels of a family's samples, but for the bounds of buckets."""
        names = {family, *(f"{family}_{part}" for part in ("bucket", "sum", "count"))}
        return {label for name, found in self.samples if name in names for label, _ in found} - {"le"}
