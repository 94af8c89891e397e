"""Placement: which instances to load and unload now, as a pure function from a snapshot to a plan with reasons.

One pass over the routes that jobs wait on or operators want, those that wait too long first; each meets the first case
that holds:

    1. enough of it is loaded or on its way      nothing to do, or one more replica when the backlog outlasts a load
    2. no live node has its file                 wait; after a while reject its waiting jobs
       none that has can be deterministic        reject the waiting jobs that ask for it
    3. no node could hold it even empty          load it over several that take part in splits, as 5 to 8 say of one;
                                                 reject its waiting jobs with the shortfall where that cannot be
    4. its loads failed too often everywhere     reject its waiting jobs with the cause of each node
       they failed just now wherever it may go   wait (the wait doubles with each failure on a node)
    5. some node has room                        load: fewest failures and replicas of it, then most free memory
    6. room can be made, or its file fetched     whatever costs fewest seconds: unload idle instances whose regret is
                                                 least, only if their sum is enough, and wait; or fetch to where room is
    7. it has waited too long                    drain what has been resident longest, even if jobs wait for it
    8. otherwise                                 wait until memory is free

Jobs that ask for `deterministic` wait on a route of their own and count as another model, which only instances with
such numerics serve; those serve the plain route, too.

Then instances that an operator wants gone, that nobody needs beside another replica, or that were idle past their
keep-alive are unloaded.

A model over several nodes is one replica, that of its *head*: shards are where it is, and leave when it does. It never
gets a second one for its backlog. What packtrain.toml splits over certain nodes skips the cases for one node.

    snapshot   what goes in and what comes out          rooms      the memory of one node in the course of a plan
    view       the snapshot, indexed                    choosing   the node for one load, and who must leave for it
    routes     who serves what, and since when nobody   replicas   how many
    failures   what failed loads mean for the next      worth      seconds that an instance is worth
    verdicts   what a job is told that cannot run       planner    the pass
    gathering  the nodes of a group, or why there is    leaving    who may be unloaded, and who is not needed
    packing    snapshots as text, to be planned again    split, split_fleet, split_speed    layers by node, and speed
"""

from packtrain.broker.placement.failures import CRASH_BACKOFF_MS, LOAD_BACKOFF_MS, MAX_LOAD_FAILURES
from packtrain.broker.placement.planner import plan
from packtrain.broker.placement.routes import missing_since, numerics_classes, serving, unserved_since
from packtrain.broker.placement.snapshot import (
    MAX_WAIT_MS,
    MIB,
    MIN_RESIDENCY_MS,
    OFFER_WAIT_MS,
    Candidate,
    Load,
    Plan,
    Reject,
    ShardLoad,
    Snapshot,
    Unload,
)

__all__ = [
    "CRASH_BACKOFF_MS",
    "LOAD_BACKOFF_MS",
    "MAX_LOAD_FAILURES",
    "MAX_WAIT_MS",
    "MIB",
    "MIN_RESIDENCY_MS",
    "OFFER_WAIT_MS",
    "Candidate",
    "Load",
    "Plan",
    "Reject",
    "ShardLoad",
    "Snapshot",
    "Unload",
    "missing_since",
    "numerics_classes",
    "plan",
    "serving",
    "unserved_since",
]
