"""Flower beside the fleet: behind a password, with nothing secret in its argument list, and for looking only.

Flower takes options from the environment, then from a configuration file, then from its arguments; the later wins. All
of ours stand in a file of mode 0600: arguments are visible to every user in `ps`, and a FLOWER_ADDRESS left over in the
operator's environment must not open the page to the network. What it could do to workers (shut them down, send them
tasks) goes round the coordinator, which would only mend it, so it is switched off.
"""

from __future__ import annotations

import http.client
import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from packtrain.broker.errors import SetupError
from packtrain.broker.private_files import kept_secret, private_folder, write_private
from packtrain.broker.server import LEAST_PASSWORD
from packtrain.client.cli.ports import checked_port, here, url_here
from packtrain.client.cli.supervisor import Child
from packtrain.client.gateway.settings import is_loopback

HOST = "127.0.0.1"
#: The Celery app that it looks through.
APP = "packtrain.broker.flower_app:app"
USER = "packtrain"
#: Tasks that Flower remembers. Its default of 100,000 costs it several hundred MB.
MAX_TASKS = 10_000
#: Instances come and go; Flower forgets those that have been offline for this long.
FORGET_WORKERS_S = 600


@dataclass(frozen=True, slots=True)
class FlowerPage:
    """Flower as it will run: where, with which login, from which folder."""

    folder: Path
    host: str
    port: int
    password: str
    password_file: Path

    @property
    def url(self) -> str:
        """Where a browser on this machine finds it, without the login."""
        return url_here(self.host, self.port)

    @property
    def conf_file(self) -> Path:
        """Flower's configuration, a Python file by Flower's choice."""
        return self.folder / "flowerconfig.py"

    def command(self, app: str) -> list[str]:
        """What to run; `app` is the Celery app, as `module:name`. It reads the broker's URL from PACKTRAIN_URL."""
        # Celery imports apps from the current folder first, so let that be ours.
        celery = [sys.executable, "-m", "celery", "--quiet", f"--workdir={self.folder}", "--app", app]
        return [*celery, "flower", f"--conf={self.conf_file}"]

    def child(self, app: str, env: Mapping[str, str]) -> Child:
        """The process to supervise."""
        # Flower knows nothing of lifelines: the guard ends it when the supervisor is gone.
        guard = [sys.executable, "-m", "packtrain.broker.guard", "0"]
        return Child("flower", [*guard, *self.command(app)], env, ready=self.answers)

    def answers(self) -> bool:
        """True when it speaks HTTP; 401 is an answer too."""
        connection = http.client.HTTPConnection(here(self.host), self.port, timeout=2)
        try:
            connection.request("GET", "/healthcheck")
            return connection.getresponse().status < 500
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()


def prepare_flower(
    folder: Path, port: int, *, host: str = HOST, password_file: Path | None = None, option: str = "--flower-port"
) -> FlowerPage:
    """Write the configuration of Flower into `folder`.

    Args:
        folder: Made when absent, mode 0700.
        port: TCP port; 0: a free one.
        host: Address to listen at. Beyond loopback anybody may try passwords, so a short one is refused there.
        password_file: Holds the password; None: one of our own, made once and kept in `folder`.
        option: That chooses another port, for the error.

    Raises:
        SetupError: Flower is not installed, the password is missing or too short, or the port is taken.
    """
    if importlib.util.find_spec("flower") is None:
        raise SetupError(
            "Flower is not installed here; install packtrain with its [monitor] extra, or leave out `--flower`"
        )
    private_folder(folder)
    file = password_file or folder / "password"
    password = _password(password_file) if password_file else kept_secret(file)
    if not is_loopback(host) and len(password) < LEAST_PASSWORD:
        raise SetupError(
            f"{host} can be reached from other machines, and the password in {file} has less than {LEAST_PASSWORD} "
            "characters; write a longer one there, or listen on 127.0.0.1"
        )
    page = FlowerPage(folder, host, checked_port(host, port, what="Flower", option=option), password, file)
    options = {
        "address": host,
        "port": page.port,
        "unix_socket": "",
        "basic_auth": [f"{USER}:{page.password}"],
        "auth": "",  # or who has logged in somewhere else would be let in
        "read_only": True,
        "debug": False,
        "persistent": False,  # no database file: Redis holds what lasts
        "max_tasks": MAX_TASKS,
        "purge_offline_workers": FORGET_WORKERS_S,
    }
    lines = [f"{name} = {value!r}\n" for name, value in options.items()]
    write_private(page.conf_file, "# Written by Packtrain at each start.\n" + "".join(lines))
    return page


def _password(file: Path) -> str:
    try:
        password = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SetupError(f"cannot read Flower's password from {file} ({error}); write one line of text there") from None
    if not password:
        raise SetupError(f"{file} holds no password for Flower; write one line of text there")
    return password
