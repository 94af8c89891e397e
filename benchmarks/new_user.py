"""A new user's path, timed: two hosts with fresh homes, to a job that ran on the second, by the commands of README.md.

Each host is a network namespace with a host name, a home and an address of its own (tests/support/hosts.py); what is
installed is this checkout, and a model lies in the home of the second host, as if it had been put there. The commands
are read from the section "Several machines" of README.md, two for each machine, and typed as a person would: the code
of the invitation is asked for at a terminal. The seconds are those from a command's start to what its user waits for.

    python benchmarks/new_user.py            # needs root, or user namespaces; iproute2
    python benchmarks/new_user.py --clone    # and one machine alone: a fresh clone and `make demo`, with a warm cache
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[0] = str(ROOT)

import argparse
import json
import os
import pty
import re
import select
import shlex
import subprocess
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field

from tests.support.demo_model import MODEL, demo_model_folder
from tests.support.doc_blocks import blocks
from tests.support.hosts import Host, hosts, why_not

PATIENCE_S = 300
HEAD, OTHER = "head", "attic"


@dataclass
class Terminal:
    """A command that runs at a terminal of a host."""

    process: subprocess.Popen[bytes]
    screen: int  # our end of it
    said: str = ""
    begun: float = field(default_factory=time.monotonic)

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Read until this is on the screen.

        Raises:
            SystemExit: It did not come, or the command ended before.
        """
        deadline = time.monotonic() + PATIENCE_S
        while not (found := re.search(pattern, self.said)):
            if not self._read(deadline - time.monotonic()):
                sys.exit(f"waited in vain for {pattern!r}; the terminal says:\n{self.said}")
        return found

    def type(self, text: str) -> None:
        """Type a line."""
        os.write(self.screen, f"{text}\n".encode())

    def end(self) -> str:
        """What it has said by its end, which is waited for."""
        deadline = time.monotonic() + PATIENCE_S
        while self._read(deadline - time.monotonic()):
            pass
        if code := self.process.wait(PATIENCE_S):
            sys.exit(f"a command ended with {code}:\n{self.said}")
        return self.said

    @property
    def seconds(self) -> float:
        """Since it was started."""
        return time.monotonic() - self.begun

    def _read(self, timeout_s: float) -> bool:
        ready, _, _ = select.select([self.screen], [], [], max(0.0, timeout_s))
        try:
            text = os.read(self.screen, 65536).decode(errors="replace") if ready else ""
        except OSError:  # the other end is closed
            return False
        self.said += re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
        return bool(text)


def start(host: Host, home: Path, command: str, *, errors: int | None = None) -> Terminal:
    """Run a command of README.md at a terminal of a host, with nothing in its environment that a new user has not.

    Args:
        errors: Where its stderr goes, if not to the terminal: there it says what it waits for.
    """
    ours, theirs = pty.openpty()
    name = f'hostname {host.name} && exec "$@"'
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    process = subprocess.Popen(
        host.command("unshare", "--uts", "sh", "-c", name, host.name, *shlex.split(command, comments=True)),
        env={"HOME": str(home), "PATH": path, "TERM": "xterm", "LANG": "C.UTF-8"},
        cwd=home, stdin=theirs, stdout=theirs, stderr=theirs if errors is None else errors, start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    return Terminal(process, ours)


def readme_commands() -> tuple[list[str], list[str]]:
    """Commands of the head, and of every other machine."""
    text = (ROOT / "README.md").read_text()
    first = text.count("\n", 0, text.index("## Several machines"))
    last = text.count("\n", 0, text.index("## How it works"))
    head, other = (b.commands for b in blocks("sh") if b.page == "README.md" and first < b.line <= last)
    return head, other


def two_hosts(folder: Path) -> list[tuple[str, str, float]]:
    """Where, what and how many seconds, in the order of doing."""
    (up, invite), (node, run) = readme_commands()
    rows = []
    homes = {name: folder / name for name in (HEAD, OTHER)}
    for home in homes.values():
        home.mkdir()
    models = homes[OTHER] / ".local/share/packtrain/models"
    models.mkdir(parents=True)
    (models / f"{MODEL}.gguf").symlink_to(demo_model_folder() / f"{MODEL}.gguf")
    with ExitStack() as stack:
        head, other = stack.enter_context(hosts(HEAD, OTHER))

        fleet = start(head, homes[HEAD], up)
        fleet.wait_for("The fleet is up")
        rows.append((HEAD, up, fleet.seconds))

        invitation = start(head, homes[HEAD], invite)
        code = invitation.wait_for(r"Code ([\d-]+) lets")[1]
        invitation.end()
        rows.append((HEAD, invite, invitation.seconds))

        agent = start(other, homes[OTHER], node)
        agent.wait_for("Code of fleet")
        found_after = agent.seconds
        agent.type(code)
        typed = time.monotonic()
        agent.wait_for("Taking commands")
        rows.append((OTHER, f"{node}   # until it asks for the code", found_after))
        rows.append((OTHER, "  the code is typed, until it takes work", time.monotonic() - typed))

        asked = start(other, homes[OTHER], run, errors=subprocess.DEVNULL)
        asked.wait_for(r"\w")
        rows.append((OTHER, f"{run}   # until the first word", asked.seconds))
        answer = asked.end()
        rows.append((OTHER, "  until the answer is complete", asked.seconds))

        jobs = json.loads(start(head, homes[HEAD], "packtrain jobs --json").end())
        print(f"\n{OTHER}: {' '.join(answer.split())[:200]}\n")
        if (ran_on := jobs[0]["node"]) != OTHER:
            sys.exit(f"the job ran on {ran_on}, not on {OTHER}")
    return rows


def fresh_clone(folder: Path) -> list[tuple[str, str, float]]:
    """One machine: a clone, and the first command of README.md in it."""
    rows = []
    demo = next(b for b in blocks("sh") if b.page == "README.md").commands[0]
    for command, where in ((f"git clone --quiet {ROOT} packtrain", folder), (demo, folder / "packtrain")):
        begun = time.monotonic()
        subprocess.run(shlex.split(command), cwd=where, check=True)
        rows.append(("alone", command.replace(str(ROOT), "..."), time.monotonic() - begun))
    return rows


def main() -> int:
    """Run and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--clone", action="store_true", help="also one machine alone: a fresh clone and `make demo`")
    options = parser.parse_args()
    if reason := why_not():
        print(reason, file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as folder:
        rows = two_hosts(Path(folder))
        if options.clone:
            rows += fresh_clone(Path(folder))
    print("| machine | command | seconds |\n|---|---|---|")
    for machine, command, seconds in rows:
        print(f"| {machine} | `{command.strip()}` | {seconds:.1f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
