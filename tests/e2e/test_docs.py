"""What README.md, CONTRIBUTING.md and docs/ show works: every command and every piece of Python, on one fleet.

A block is run as it stands, but for names that only its reader can know: `ID` of a job, `attic` of a node, the port
that a gateway got. What is not run says why in `EXCUSED` of tests/support/doc_blocks.py.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import gguf
import pytest

from packtrain.client.cli.main import main
from tests.conftest import ROOT
from tests.support.demo_model import MODEL, demo_model_folder
from tests.support.doc_blocks import Block, blocks, calls_of, excuse_of
from tests.support.fleets import fleet
from tests.support.tiny_lora import write_tiny_lora

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

#: They run until Ctrl-C, which comes as soon as they have said something.
FOREGROUND = ("packtrain top", "packtrain logs -f", "packtrain serve", "packtrain flower")
#: Which need no second run where another page shows the same.
ALONE = ("packtrain run", "curl")
_HEARS_CTRL_C = (
    "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execvp(sys.argv[1], sys.argv[1:])"
)
#: Names of models that the demo model answers to; a short context, so that no answer is long.
CONFIG = f"""
[models.{MODEL}]
context = 512
slots = 4
aliases = ["qwen3-8b", "qwen2.5-coder", "big"]
[models.{MODEL}.adapters]
pirate = "lora/pirate.gguf"
"""


@dataclass
class Reader:
    """Who tries what the pages show, with a fleet, a job in it, and files to work on."""

    folders: Path
    names: dict[str, str]  # that only a reader can know
    environment: dict[str, str]
    modules: dict[str, ModuleType] = field(default_factory=dict)  # what the Python of a page has defined
    done: set[str] = field(default_factory=set)

    def folder_for(self, page: str) -> Path:
        """Where commands of this page run."""
        folder = self.folders / page.replace("/", "-")
        if not folder.exists():
            write_files(folder)
        return folder

    def module_for(self, page: str) -> ModuleType:
        """Where Python of this page runs: it goes on from block to block."""
        name = f"shown_in_{re.sub(r'[^a-z]', '_', page)}"
        if page not in self.modules:
            self.modules[page] = sys.modules[name] = ModuleType(name)  # pydantic looks names up there
        return self.modules[page]

    def said(self, text: str) -> str:
        """A command or a block with the names of this fleet."""
        for name, value in self.names.items():
            text = re.sub(rf"(?<![\w-]){re.escape(name)}(?![\w-])", value, text)
        return text

    def run(self, command: str, folder: Path) -> tuple[int, str]:
        """Exit code and output."""
        before, _, last = command.rpartition("|")
        calls = calls_of(last, "packtrain")
        if command.startswith(FOREGROUND):
            return self.until_interrupted(command, folder)
        if len(calls) == 1 and not set(";&<>") & set(re.sub(r"'[^']*'|\"[^\"]*\"", "", last)):
            stdin = self.bash(before, folder).stdout if before else b""
            return packtrain(calls[0], stdin)
        done = self.bash(command, folder)
        return done.returncode, (done.stdout + done.stderr).decode(errors="replace")

    def bash(self, command: str, folder: Path) -> subprocess.CompletedProcess[bytes]:
        """Run what is more than one call of `packtrain`, or none."""
        environment = {**os.environ, **self.environment}
        arguments = ["bash", "-euo", "pipefail", "-c", command]
        return subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, timeout=120)

    def until_interrupted(self, command: str, folder: Path) -> tuple[int, str]:
        """Start one that runs until Ctrl-C, and press that when it has said something."""
        process = subprocess.Popen(
            # What is started in the background of a shell would not hear it.
            [sys.executable, "-c", _HEARS_CTRL_C, *shlex.split(command)],
            cwd=folder, env={**os.environ, **self.environment},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert process.stdout is not None
        said = os.read(process.stdout.fileno(), 4096)
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=60)
        was_interrupted = process.returncode in (130, -signal.SIGINT) and said
        return 0 if was_interrupted else process.returncode, (said + rest).decode(errors="replace")


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    home = tmp_path_factory.mktemp("home")
    (home / "packtrain.toml").write_text(CONFIG)
    write_tiny_lora(home / "models" / "lora" / "pirate.gguf", n_embd=576, rank=32, kind=gguf.GGMLQuantizationType.Q8_0)
    # One thread: on a busy machine two wait for each other most of the time.
    with (
        fleet(home, demo_model_folder(), http_port=0, PACKTRAIN_CORES="1") as running,
        pytest.MonkeyPatch.context() as patch,
    ):
        folders = tmp_path_factory.mktemp("reader")
        # An error has to be noticed.
        (folders / ".curlrc").write_text("fail-with-body\nsilent\nshow-error\nmax-time = 60\n")
        assert running.running.gateway is not None
        url = running.running.gateway.url
        job = running.client.submit(MODEL, "Hi", max_tokens=3)
        job.result()
        names = {
            "http://127.0.0.1:8080": url, "http://head:8080": url, "ID": job.id, "JOB": job.id, "6c0e...": job.id,
            "FLEET.toml": "docs/examples/fleet.toml", "DIR": "secrets", "attic": "n1", "laptop-2": "n1",
            "--port 8081": "--port 0", "packtrain flower": "packtrain flower --port 0", "--cores 6": "--cores 1",
        }  # fmt: skip
        bin_folder = str(Path(sys.executable).parent)
        environment = {
            "PACKTRAIN_HOME": str(home), "PATH": f"{bin_folder}:{os.environ['PATH']}", "CURL_HOME": str(folders),
            "PYTHONPATH": str(ROOT),
        }  # fmt: skip
        for name, value in environment.items():
            patch.setenv(name, value)
        patch.delenv("PACKTRAIN_URL", raising=False)
        there = Reader(folders, names, environment)
        yield there
        for module in there.modules.values():
            if fleet_there := getattr(module, "fleet", None):
                fleet_there.close()


def write_files(folder: Path) -> None:
    """What commands in the docs read."""
    folder.mkdir()
    for name in ("docs", "benchmarks"):
        (folder / name).symlink_to(ROOT / name)
    rows = [{"prompt": "Name a river.", "max_tokens": 4, "model": MODEL}, {"input": "a text", "model": MODEL}]
    for name in ("in.jsonl", "requests.jsonl"):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "prompts.jsonl.gz").write_bytes(gzip.compress(json.dumps(rows[0]).encode()))
    (folder / "prompts.csv").write_text("text\nGood morning.\n")
    (folder / "notes.txt").write_text("Why is the sky blue?")
    schema = {"type": "object", "properties": {"age": {"type": "integer", "maximum": 99}}, "required": ["age"]}
    (folder / "person.json").write_text(json.dumps(schema))


def packtrain(arguments: list[str], stdin: bytes) -> tuple[int, str]:
    """The command line within this process: a new one takes a second to import everything."""
    out = io.TextIOWrapper(io.BytesIO(), write_through=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["packtrain", *arguments])
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", out)
        try:
            main()
            code: object = 0
        except SystemExit as ended:
            code = ended.code or 0
    out.seek(0)
    return int(str(code)), out.read()


@pytest.mark.parametrize("block", blocks("sh", "console"), ids=str)
def test_commands_as_shown_work(reader: Reader, block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = reader.folder_for(block.page)
    monkeypatch.chdir(folder)
    for command in block.commands:
        if excuse_of(command) or command in reader.done:  # shown on another page, too
            continue
        code, said = reader.run(reader.said(command), folder)
        assert code == 0, f"{command}\n{said[-3000:]}"
        if command.startswith(ALONE):
            reader.done.add(command)
    if "packtrain keys create" in block.code:  # without keys the other blocks may call
        for key in json.loads(packtrain(["keys", "list", "--json"], b"")[1]):
            packtrain(["keys", "revoke", key["name"]], b"")


@pytest.mark.parametrize("block", blocks("python"), ids=str)
def test_python_as_shown_works(reader: Reader, block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(reader.folder_for(block.page))
    if not excuse_of(block.code):
        exec(compile(reader.said(block.code), str(block), "exec"), vars(reader.module_for(block.page)))
