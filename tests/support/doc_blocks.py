"""Code blocks and commands of README.md, CONTRIBUTING.md and docs/, as tests want them.

Every block of `sh`, `console` or `python` is run by a test unless `EXCUSED` says why not; the reasons are few. So a new
block needs nothing, as long as it works.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from tests.conftest import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


class Reason(Enum):
    """Why a command is not run by tests/e2e/test_docs.py."""

    SET_UP = "makes the environment that the tests run in"
    FLEET = "starts the fleet that the tests of commands run in, or ends it"
    OWN_TEST = "a step of `make` or CI itself, or takes minutes"
    HARM = "takes the fleet away from the commands that follow; tests/integration/test_broker_users.py has its own"
    HOSTS = "takes a second host; benchmarks/new_user.py and tests/integration/test_joining.py have one"
    INTERNET = "takes files from the internet; tests/integration/test_pull.py has a hub of its own"
    CONTAINERS = "takes containers or machines to set up; tests/compose runs the files that these use"
    MODEL = "takes a model that was made for it; tests/contract has those"
    PACKAGES = "takes packages that only `make clients` installs, which runs it"


#: Packages that programs of others bring.
CLIENTS = re.compile(r"^(?:from|import) (openai|langchain_openai|llama_index|litellm|ollama|anthropic)\b", re.MULTILINE)
#: By how the command begins, or the first line of a block of Python.
EXCUSED = {
    "apt-get": Reason.SET_UP,
    "pip install": Reason.SET_UP,
    "make setup": Reason.SET_UP,
    "make demo": Reason.OWN_TEST,
    "make test": Reason.OWN_TEST,
    "make unit": Reason.OWN_TEST,
    "make faults": Reason.OWN_TEST,
    "make chaos": Reason.OWN_TEST,
    ".venv/bin/pytest": Reason.OWN_TEST,
    "make up": Reason.FLEET,
    "packtrain up": Reason.FLEET,
    "packtrain nodes revoke": Reason.HARM,
    "packtrain invite": Reason.HOSTS,
    "packtrain node": Reason.HOSTS,
    "packtrain pull": Reason.INTERNET,
    "docker": Reason.CONTAINERS,
    "sh deploy/init-secrets.sh": Reason.CONTAINERS,
    "cp /where/your/models/are/*.gguf models/": Reason.CONTAINERS,
    'curl http://127.0.0.1:8080/v1/chat/completions -H "Authorization': Reason.CONTAINERS,
    "echo": Reason.CONTAINERS,
    "cat > deploy/secrets/join": Reason.CONTAINERS,
    "git pull": Reason.CONTAINERS,
    "tailscale": Reason.CONTAINERS,
    "install": Reason.CONTAINERS,
    "systemctl": Reason.CONTAINERS,
    "PACKTRAIN_HOME=/var/lib/packtrain": Reason.CONTAINERS,
    "cp deploy/ansible/inventory.example.yml": Reason.CONTAINERS,
    ".venv/bin/pip wheel": Reason.CONTAINERS,
    "ansible-playbook": Reason.CONTAINERS,
    "kubectl": Reason.CONTAINERS,
    "cd deploy/secrets": Reason.CONTAINERS,
    'fleet.generate("qwen2.5-coder"': Reason.MODEL,
    'fleet.generate("smollm2-shapes"': Reason.MODEL,
    "packtrain run smollm2-shapes": Reason.MODEL,
    'fleet.generate("ultravox"': Reason.MODEL,
    "packtrain run ultravox": Reason.MODEL,
}
_FENCE = re.compile(r"^```(?P<language>sh|console|python)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"(?<!`)`(?P<code>[^`\n]+)`(?!`)")
_ANY_FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Block:
    """One block of code of one page."""

    page: str
    line: int
    language: str
    code: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def commands(self) -> list[str]:
        """Of a shell: its commands, each with all its lines, without comments."""
        return list(_commands(self.code))


def blocks(*languages: str) -> list[Block]:
    """All blocks in these languages."""
    found = []
    for page in PAGES:
        text = page.read_text()
        for fence in _FENCE.finditer(text):
            if fence["language"] in languages:
                line = text.count("\n", 0, fence.start()) + 1
                found.append(Block(page.relative_to(ROOT).as_posix(), line, fence["language"], fence["code"]))
    return found


def inline_commands(word: str) -> list[tuple[str, str]]:
    """Page and text of each piece of code within prose and tables that begins with this word."""
    found = []
    for page in PAGES:
        prose = _ANY_FENCE.sub("", page.read_text())
        codes = [match["code"] for match in _INLINE.finditer(prose)]
        found += [(page.relative_to(ROOT).as_posix(), code) for code in codes if code.split()[:1] == [word]]
    return found


def excuse_of(code: str) -> Reason | None:
    """Why a command or a block of Python is not run; None: it is."""
    if CLIENTS.search(code):
        return Reason.PACKAGES
    return next((reason for begin, reason in EXCUSED.items() if begins(code, begin)), None)


def begins(code: str, begin: str) -> bool:
    """Whether a command or a block begins so. Variables that are set for one call stand before it."""
    return re.match(rf"(?:[A-Z_]+=\S+ )*{re.escape(begin)}(?![\w-])", code) is not None


def calls_of(command: str, program: str) -> list[list[str]]:
    """Arguments of each call of a program within a command line with pipes and such."""
    lexer = shlex.shlex(command, posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split = True
    calls: list[list[str]] = [[]]
    for token in lexer:
        if set(token) <= set("|&;<>"):
            calls.append([])
        else:
            calls[-1].append(token)
    # Variables that are set for one call stand before it.
    bare = [call[next((n for n, word in enumerate(call) if "=" not in word), 0) :] for call in calls]
    return [call[1:] for call in bare if call[:1] == [program]]


def _commands(code: str) -> Iterator[str]:
    begun = ""
    for line in code.splitlines():
        begun = f"{begun}\n{line}" if begun else line.removeprefix("$ ")
        if begun.endswith("\\"):
            continue
        try:
            words = shlex.split(begun, comments=True)
        except ValueError:  # a quotation that goes on in the next line
            continue
        if words:
            yield _without_comment(begun)
        begun = ""


def _without_comment(line: str) -> str:
    """Cut at a `#` that begins a word outside of quotations."""
    for match in re.finditer(r"(?:^|\s)#", line):
        try:
            shlex.split(line[: match.start()])
        except ValueError:
            continue
        return line[: match.start()].strip()
    return line.strip()
