"""Flower beside the fleet: on loopback, behind a password, with nothing secret in its argument list.

Flower takes options from the environment, then from a configuration file, then from its arguments; the later wins. All
of ours stand in a file of mode 0600: arguments are visible to every user in `ps`, and a FLOWER_ADDRESS left over in the
operator's environment must not open the page to the network. `/metrics` and `/healthcheck` ask for no password in
Flower 2.2, which is one more reason for loopback.
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
from packtrain.client.cli.ports import checked_port
from packtrain.client.cli.supervisor import Child

HOST = "127.0.0.1"
USER = "packtrain"
#: Tasks that Flower remembers. Its default of 100,000 costs it several hundred MB.
MAX_TASKS = 10_000
#: Instances come and go; Flower forgets those that have been offline for this long.
FORGET_WORKERS_S = 600


@dataclass(frozen=True, slots=True)
class FlowerPage:
    """Flower as it will run: where, with which login, from which folder."""

    folder: Path
    port: int
    password: str

    @property
    def url(self) -> str:
        """Where a browser finds it, without the login."""
        return f"http://{HOST}:{self.port}"

    @property
    def password_file(self) -> Path:
        """Where the password stands, made once and kept."""
        return self.folder / "password"

    @property
    def conf_file(self) -> Path:
        """Flower's configuration, a Python file by Flower's choice."""
        return self.folder / "flowerconfig.py"

    def child(self, app: str, env: Mapping[str, str]) -> Child:
        """The process to supervise. `app` is the Celery app, as `module:name`."""
        # Flower knows nothing of lifelines: the guard ends it when the supervisor is gone.
        guard = [sys.executable, "-m", "packtrain.broker.guard", "0"]
        # Celery imports apps from the current folder first, so let that be ours.
        celery = [sys.executable, "-m", "celery", "--quiet", f"--workdir={self.folder}", "--app", app]
        return Child("flower", [*guard, *celery, "flower", f"--conf={self.conf_file}"], env, ready=self.answers)

    def answers(self) -> bool:
        """True when it speaks HTTP; 401 is an answer too."""
        connection = http.client.HTTPConnection(HOST, self.port, timeout=2)
        try:
            connection.request("GET", "/healthcheck")
            return connection.getresponse().status < 500
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()


def prepare_flower(folder: Path, port: int) -> FlowerPage:
    """Write the configuration of Flower into `folder`.

    Args:
        folder: Made when absent, mode 0700.
        port: TCP port on loopback; 0: a free one.

    Raises:
        SetupError: Flower is not installed, or the port is taken.
    """
    if importlib.util.find_spec("flower") is None:
        raise SetupError(
            "Flower is not installed here; install packtrain with its [monitor] extra, or leave out `--flower`"
        )
    private_folder(folder)
    checked = checked_port(HOST, port, what="Flower", option="--flower-port")
    page = FlowerPage(folder, checked, kept_secret(folder / "password"))
    options = {
        "address": HOST,
        "port": page.port,
        "unix_socket": "",
        "basic_auth": [f"{USER}:{page.password}"],
        "persistent": False,  # no database file: Redis holds what lasts
        "max_tasks": MAX_TASKS,
        "purge_offline_workers": FORGET_WORKERS_S,
    }
    lines = [f"{name} = {value!r}\n" for name, value in options.items()]
    write_private(page.conf_file, "# Written by `packtrain up` at each start.\n" + "".join(lines))
    return page
