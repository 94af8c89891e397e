"""`packtrain doctor`: what this machine has, what it lacks, and the remedy for each."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from typing import Any, Literal

from rich.console import Console

from packtrain.broker.connection import masked
from packtrain.broker.errors import PacktrainError
from packtrain.broker.server import find_server
from packtrain.broker.settings import Settings
from packtrain.client.client import Packtrain

#: The probe imports llama.cpp: 1 s here, ten on a slow disk.
PROBE_TIMEOUT_S = 60
FEW_FREE_BYTES = 2 * 1024**3


@dataclass(frozen=True, slots=True)
class Finding:
    """One checked thing."""

    name: str
    verdict: Literal["ok", "warn", "fail"]
    found: str
    remedy: str = ""


def run(settings: Settings, *, as_json: bool) -> int:
    """Check everything and print it. The exit code: 1 when anything failed."""
    findings = [_python(), *_worker(settings), _broker_server(), _disk(settings), *_fleet(settings)]
    if as_json:
        sys.stdout.write(json.dumps([asdict(finding) for finding in findings], indent=2) + "\n")
    else:
        _print(findings)
    return 1 if any(finding.verdict == "fail" for finding in findings) else 0


def _print(findings: list[Finding]) -> None:
    console = Console(highlight=False)
    colours = {"ok": "green", "warn": "yellow", "fail": "red"}
    for finding in findings:
        colour = colours[finding.verdict]
        console.print(f"[{colour}]{finding.verdict:>4}[/]  {finding.name:<16}", end="")
        console.print(finding.found, markup=False, soft_wrap=True)
        if finding.remedy:
            console.print(f"{'':24}→ {finding.remedy}", markup=False, soft_wrap=True)


def _python() -> Finding:
    found = ".".join(map(str, sys.version_info[:3]))
    return Finding("Python", "ok", found)


def _worker(settings: Settings) -> list[Finding]:
    """What the probe process says: it may import the worker side and llama.cpp, we may not."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "packtrain.workers.probe"],
            capture_output=True, text=True, timeout=PROBE_TIMEOUT_S, stdin=subprocess.DEVNULL, check=False,
            env={**os.environ, "PACKTRAIN_HOME": str(settings.home)},
        )  # fmt: skip
        report: dict[str, Any] = json.loads(done.stdout)
    except (subprocess.TimeoutExpired, ValueError) as error:
        report = {"error": f"the probe gave no answer: {error}"}
    if "error" in report:
        if report.get("is_setup"):  # the library is well, a setting is not
            return [Finding("settings", "fail", str(report["error"]))]
        remedy = "only needed where models run: install packtrain with its [worker] extra (needs g++, cmake and make)"
        return [Finding("llama.cpp", "warn", str(report["error"]), remedy)]
    rpc = (
        Finding("RPC", "ok", "built in: models can be split over machines")
        if report["rpc"]
        else Finding(
            "RPC", "warn", "not built in: models cannot be split over machines",
            'rebuild with CMAKE_ARGS="-DGGML_RPC=ON" pip install --no-cache-dir --force-reinstall llama-cpp-python',
        )
    )  # fmt: skip
    few = report["memory_free"] < FEW_FREE_BYTES
    findings = [
        Finding("llama.cpp", "ok", f"llama-cpp-python {report['version']}"),
        Finding("CPU features", "ok", report["system_info"]),
        rpc,
        Finding("cores", "ok", f"{report['cores']}"),
        Finding(
            "memory",
            "warn" if few else "ok",
            f"{report['memory_free'] / 1024**3:.1f} of {report['memory_total'] / 1024**3:.1f} GiB free",
            "close programs, or give models less with --memory" if few else "",
        ),
    ]
    for device in report["devices"]:
        if device["kind"] == "gpu":
            free, total = (device[which] / 1024**3 for which in ("free", "total"))
            findings.append(Finding("GPU", "ok", f"{device['name']}: {free:.1f} of {total:.1f} GiB free"))
        elif device["unified"]:
            findings.append(Finding("GPU", "ok", f"{device['name']} share one memory"))
    for fault in report["faults"]:
        remedy = "mend or remove this file"
        findings.append(Finding("model file", "warn", f"{fault['file']}: {fault['reason']}", remedy))
    models, folders = report["models"], ", ".join(report["folders"])
    if models:
        findings.append(Finding("models", "ok", f"{', '.join(models)} (in {folders})"))
    else:
        remedy = "put a .gguf file there, or name other folders in PACKTRAIN_MODELS"
        findings.append(Finding("models", "warn", f"none in {folders}", remedy))
    return findings


def _broker_server() -> Finding:
    try:
        binary = find_server()
    except PacktrainError as error:
        return Finding("broker server", "warn", str(error), "only needed where `packtrain up` runs")
    return Finding("broker server", "ok", f"{binary.kind} {binary.version} at {binary.path}")


def _disk(settings: Settings) -> Finding:
    folder = settings.home
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    low = free < FEW_FREE_BYTES
    remedy = "make room: the broker's log and models live here" if low else ""
    return Finding("disk", "warn" if low else "ok", f"{free / 1024**3:.1f} GiB free at {settings.home}", remedy)


def _fleet(settings: Settings) -> list[Finding]:
    try:
        url = settings.broker_url()
        with Packtrain(url) as fleet:
            nodes, instances = fleet.nodes(), fleet.instances()
    except PacktrainError as error:
        return [Finding("fleet", "warn", str(error))]
    serving = sum(1 for instance in instances if not (instance.state.is_terminal or instance.is_shard))
    found = f"{masked(url)}: {len(nodes)} nodes, {serving} instances"
    if not nodes:
        return [Finding("fleet", "warn", found, "start a node: `packtrain node`, or `packtrain up`")]
    return [Finding("fleet", "ok", found)]
