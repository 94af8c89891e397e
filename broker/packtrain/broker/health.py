"""Is one part of a fleet well? Supervisors of containers and services ask `python -m packtrain.broker.health ROLE`.

| role        | well when                                                   |
|-------------|-------------------------------------------------------------|
| broker      | it answers, and has loaded its data                         |
| coordinator | a coordinator leads                                         |
| node        | this machine's agent has reported within the last 10 s      |
| pairing     | the pairing service has reported within its last minute     |
| gateway     | it takes requests: its /readyz, which asks the broker, too  |
| flower      | it answers                                                  |

Each answer is of a second ago at most and costs a third of a second of CPU time, for this imports Redis' client and
nothing else. Who asks within a container need not name the role: it is the command of its first process.
"""

from __future__ import annotations

import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from redis import Redis
from redis.exceptions import RedisError

from packtrain.broker import keys
from packtrain.broker.connection import connect, masked
from packtrain.broker.errors import BrokerUnavailable, InvalidParameter, PacktrainError, SetupError
from packtrain.broker.settings import Settings, load_settings

TIMEOUT_S = 5.0
#: Where a part that speaks HTTP is asked, and what for.
PAGES: Mapping[str, str] = {
    "gateway": "http://127.0.0.1:8080/readyz",
    "flower": "http://127.0.0.1:5555/healthcheck",
}
#: Commands by other names than the part they run.
COMMANDS: Mapping[str, str] = {"serve": "gateway"}
FIRST_PROCESS = Path("/proc/1/cmdline")

_LIVES: Mapping[str, Callable[[Redis, Settings], bool]] = {
    "broker": lambda redis, _: bool(redis.ping()),
    "coordinator": lambda redis, _: bool(redis.exists(keys.LEADER)),
    "node": lambda redis, settings: bool(redis.exists(keys.node(settings.node_id))),
    "pairing": lambda redis, _: bool(redis.exists(keys.PAIRING)),
}
_FAULTS: Mapping[str, str] = {
    "coordinator": "no coordinator leads; look into its log, and start one with `packtrain coordinator`",
    "node": "the agent of node {node} does not report; look into its log",
    "pairing": "no pairing service reports; look into its log, and start one with `packtrain pairing`",
}
ROLES = (*_LIVES, *PAGES)


def check(role: str, settings: Settings, *, page: str = "") -> str:
    """What is well, as a few words.

    Args:
        role: One of `ROLES`.
        page: URL to ask instead of the one in `PAGES`.

    Raises:
        InvalidParameter: There is no such role.
        BrokerUnavailable: The broker does not answer.
        SetupError: It is not well; the message says why.
    """
    if role in PAGES:
        return _answers(page or PAGES[role], role)
    if role not in _LIVES:
        raise InvalidParameter(f"{role!r} is no part of a fleet; there are {', '.join(ROLES)}", field="role")
    url = settings.broker_url()
    redis = connect(url, name=f"health.{role}", retries=0)
    try:
        if not _LIVES[role](redis, settings):
            raise SetupError(_FAULTS[role].format(node=settings.node))
    except RedisError as error:
        raise BrokerUnavailable(url=masked(url), reason=str(error).rstrip(".")) from error
    finally:
        redis.close()
    return f"{role}: well"


def role_of(command: Sequence[str]) -> str:
    """The part that a command line runs; empty: none.

    >>> role_of(["tini", "--", "packtrain", "serve", "--host", "0.0.0.0"])
    'gateway'
    """
    words = iter(command)
    for word in words:
        if word.rpartition("/")[2] == "packtrain":
            name = next(words, "")
            return COMMANDS.get(name, name)
    return ""


def _answers(page: str, role: str) -> str:
    try:
        with urllib.request.urlopen(page, timeout=TIMEOUT_S):  # noqa: S310
            return f"{role}: well"
    except urllib.error.HTTPError as error:
        with error:
            reason = f"answers {error.code} at {page}"
    except (OSError, ValueError) as error:
        reason = f"does not answer at {page} ({error})"
    raise SetupError(f"the {role} {reason}; look into its log")


def main(argv: Sequence[str]) -> int:
    """Entry point; the exit code: 0 well, 1 not."""
    try:
        role = argv[0] if argv else role_of(FIRST_PROCESS.read_text().split("\0"))
        print(check(role, load_settings(), page=argv[1] if len(argv) > 1 else ""))  # noqa: T201
    except (PacktrainError, OSError) as error:
        sys.stderr.write(f"packtrain health: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
