"""Hops: which fleets a job has come through, so that two fleets may be each other's remote and no job runs in a circle.

A fleet that hands a job to a remote server adds its own id to the job's trail and sends the trail along, in a header
that only Packtrain reads. A job is refused where it would be sent out by the same fleet a second time, or through more
than `MAX_VIA` of them. Where the job is submitted this is checked before it waits: each round holds a place in every
fleet that it went through, so a circle that only the last one would notice could fill all places and wait for itself.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Final

from packtrain.broker.errors import FleetLoop
from packtrain.broker.job_spec import MAX_VIA

#: The header of the trail: ids of fleets, separated by commas.
HEADER: Final = "Packtrain-Via"

_ID = re.compile(r"[0-9a-f]{16}")


def fleet_id(secret: str) -> str:
    """The id of the fleet with this secret (`Registry.secret`), which it does not tell."""
    return hashlib.sha256(f"packtrain fleet {secret}".encode()).hexdigest()[:16]


def parse_trail(header: str | None) -> tuple[str, ...]:
    """The trail in a header; empty where there is none, or one that no Packtrain wrote.

    Raises:
        FleetLoop: It is longer than any job may go.

    >>> parse_trail("0123456789abcdef, fedcba9876543210")
    ('0123456789abcdef', 'fedcba9876543210')
    >>> parse_trail("something else")
    ()
    """
    trail = tuple(part.strip() for part in header.split(",")) if header else ()
    if not all(_ID.fullmatch(part) for part in trail):
        return ()
    if len(trail) > MAX_VIA:
        raise _too_long(trail)
    return trail


def trail_from(fleet: str, via: Sequence[str], *, model: str) -> tuple[str, ...]:
    """The trail of a job that this fleet sends out.

    Args:
        fleet: Its id.
        via: How the job came here.
        model: That stands for the remote server.

    Raises:
        FleetLoop: It has been sent out from here before, or has come too far.
    """
    if fleet in via:
        raise FleetLoop(
            f"the job has come back to the fleet that sent it out, and {model!r} would send it out again: two fleets "
            "are each other's remote for it; let its model be loaded in one of them",
            model=model,
            via=list(via),
        )
    if len(via) >= MAX_VIA:
        raise _too_long(via)
    return (*via, fleet)


def _too_long(via: Sequence[str]) -> FleetLoop:
    return FleetLoop(
        f"the job has come through {len(via)} fleets, and {MAX_VIA} is the most; let one of them load its model",
        via=list(via),
    )
