"""Packtrain's own API over HTTP: everything that the Python client can do over Redis, message for message.

    jobs     submit, look, wait, cancel, explain            native_jobs.py
    events   of one job or of many, resumable               native_events.py
    fleet    models, nodes, instances; load, pull, drain    native_fleet.py

`packtrain.client.http_transport` speaks it. Who calls sees the jobs of their own user and no others; what concerns the
fleet as a whole is for administrators.
"""

from __future__ import annotations

from fastapi import APIRouter, FastAPI

from packtrain.client.gateway.door import Door
from packtrain.client.gateway.failures import shape_failures
from packtrain.client.gateway.native_events import add_events
from packtrain.client.gateway.native_fleet import add_fleet
from packtrain.client.gateway.native_form import native_body
from packtrain.client.gateway.native_jobs import add_jobs
from packtrain.client.gateway.native_owners import Owners
from packtrain.client.native_wire import PREFIX


def add_native(app: FastAPI, door: Door) -> None:
    """Serve Packtrain's own API."""
    router = APIRouter(prefix=PREFIX, tags=["Packtrain"])
    owners = Owners(door.fleet.transport.blocking)
    add_events(router, door, owners)
    add_jobs(router, door, owners)
    add_fleet(router, door)
    app.include_router(router)
    shape_failures(app, [PREFIX + "/"], native_body)
