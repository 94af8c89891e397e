"""Snapshots as text, small enough to keep: what a plan depends on, equal offers once, compressed.

The fleet of a laptop takes 1 KB, one of 20 nodes and 20 models 4, one of 100 nodes and 200 models 75.
"""

from __future__ import annotations

import base64
import json
import zlib
from typing import Any

from packtrain.broker.beats import InstanceBeat, NodeBeat
from packtrain.broker.ids import ModelId, NodeId, Route, model_of
from packtrain.broker.model_info import ModelInfo
from packtrain.broker.orders import Desired
from packtrain.broker.placement.snapshot import Snapshot

VERSION = 1
#: Of a text that is unpacked: a damaged or hostile one must not fill the memory.
MAX_UNPACKED_BYTES = 64 * 1024 * 1024
#: Of a node's beat, what no plan asks.
_UNASKED = {"pid", "cores", "faults", "instances", "term_seen", "version"}
_PLAIN = ("now_ms", "waiting", "missing_since", "unserved_since", "offer_wait_ms", "max_wait_ms", "min_residency_ms")


def pack(now: Snapshot) -> str:
    """A snapshot as text. Models that the plan cannot be about are left out."""
    asked = {model_of(route) for route in now.waiting} | set(now.desired) | {ModelId(i.model) for i in now.instances}
    asked |= {name for name, info in now.models.items() if info.min_replicas}
    infos: dict[int, tuple[int, ModelInfo]] = {}

    def number(info: ModelInfo) -> int:
        return infos.setdefault(id(info), (len(infos), info))[0]

    def asked_of(node: NodeBeat) -> NodeBeat:
        # Of its certificate only that there is one.
        models = tuple(m for m in node.models if m in asked)
        return node.model_copy(update={"models": models, "certificate": "kept" if node.certificate else ""})

    nodes = [asked_of(node) for node in now.nodes]
    # How a model would be split is told by what `models` has of it, and of that only its layers and their memory.
    may_split = any(node.split for node in now.nodes) or any(beat.is_head for beat in now.instances)
    whole = {number(info) for name, info in now.models.items() if name in asked and (may_split or info.split_over)}
    fields: dict[str, Any] = {name: getattr(now, name) for name in _PLAIN}
    fields |= {
        "v": VERSION,
        "nodes": [node.model_dump(mode="json", exclude=_UNASKED, exclude_defaults=True) for node in nodes],
        "instances": [beat.model_dump(mode="json", exclude_defaults=True) for beat in now.instances],
        "desired": {model: want.model_dump(exclude_defaults=True) for model, want in now.desired.items()},
        "models": {name: number(info) for name, info in now.models.items() if name in asked},
        "offers": {
            name: {node: number(info) for node, info in said.items()}
            for name, said in now.offers.items()
            if name in asked
        },
        "has_offers": bool(now.offers),
    }
    fields["infos"] = [
        info.offer(with_layers=number in whole).model_dump(mode="json", exclude_defaults=True)
        for number, info in infos.values()
    ]
    return base64.b85encode(zlib.compress(json.dumps(fields, separators=(",", ":")).encode(), 6)).decode()


def unpack(text: str) -> Snapshot:
    """The snapshot again; plans made of it are those made of the original.

    Raises:
        ValueError: It is no packed snapshot, or one of another version; says which.
    """
    try:
        stream = zlib.decompressobj()
        raw = stream.decompress(base64.b85decode(text), MAX_UNPACKED_BYTES)
        fields = json.loads(raw) if not stream.unconsumed_tail else None
    except (ValueError, zlib.error) as error:
        raise ValueError(f"it is no packed snapshot ({error})") from error
    if not isinstance(fields, dict) or fields.get("v") != VERSION:
        raise ValueError("it is a snapshot of another version, or too large")
    try:
        infos = [ModelInfo.model_validate(info) for info in fields["infos"]]
        offers = {
            ModelId(name): {NodeId(node): infos[number] for node, number in said.items()}
            for name, said in fields["offers"].items()
        }
        if fields["has_offers"] and not offers:
            offers = {ModelId(""): {}}  # nodes say what they have, and it is none of these
        return Snapshot(
            **{name: fields[name] for name in _PLAIN if name not in ("waiting", "missing_since", "unserved_since")},
            nodes=[NodeBeat.model_validate(node) for node in fields["nodes"]],
            instances=[InstanceBeat.model_validate(beat) for beat in fields["instances"]],
            models={ModelId(name): infos[number] for name, number in fields["models"].items()},
            offers=offers,
            waiting={Route(route): count for route, count in fields["waiting"].items()},
            desired={ModelId(name): Desired.model_validate(want) for name, want in fields["desired"].items()},
            missing_since={ModelId(name): since for name, since in fields["missing_since"].items()},
            unserved_since={Route(route): since for route, since in fields["unserved_since"].items()},
        )
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
        raise ValueError(f"the packed snapshot cannot be read ({error!r})") from error
