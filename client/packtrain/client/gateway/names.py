"""Which names of models a caller may read: a key that is for some models learns of no others, in lists or in sentences.

What serves an alias belongs to it, for the alias's own entry says so. Figures that tell no names (memory of a node, how
many models it has) stay as they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from packtrain.broker.beats import InstanceBeat, NodeBeat
from packtrain.broker.errors import UnknownModel
from packtrain.broker.explain import Explanation
from packtrain.broker.ids import Route, model_of
from packtrain.broker.model_info import ModelInfo
from packtrain.client.gateway.access import Caller
from packtrain.client.gateway.door import Door

_WORD = re.compile(r"[a-z0-9][a-z0-9._-]*[a-z0-9]|[a-z0-9]")
_INSTANCE = re.compile(r"-[0-9a-f]{8}$")  # behind the model in an instance's id


@dataclass(frozen=True, slots=True)
class Names:
    """The names that one caller may read."""

    shown: frozenset[str] | None = None  # None: all
    hidden: frozenset[str] = frozenset()

    def shows(self, name: str) -> bool:
        """True for a model, or a route to it, that they may know of."""
        return self.shown is None or model_of(Route(name)) in self.shown

    def told(self, text: str) -> str:
        """A sentence without the names of other models.

        >>> Names(frozenset({"a"}), frozenset({"b.1"})).told("a waits until b.1 is unloaded; b.1-0123abcd has work.")
        'a waits until another model is unloaded; another model has work.'
        """
        if not self.hidden:
            return text
        return _WORD.sub(lambda m: "another model" if _INSTANCE.sub("", m[0]) in self.hidden else m[0], text)

    def node(self, beat: NodeBeat) -> NodeBeat:
        """A node as they may see it."""
        if self.shown is None:
            return beat
        return beat.model_copy(
            update={
                "models": tuple(filter(self.shows, beat.models)),
                "not_deterministic": {name: why for name, why in beat.not_deterministic.items() if self.shows(name)},
                "instances": tuple(name for name in beat.instances if self.shows(_INSTANCE.sub("", name))),
                "faults": (),
                "quarantine": self.told(beat.quarantine),
            }
        )

    def instances(self, beats: Sequence[InstanceBeat]) -> list[InstanceBeat]:
        """The instances that they may see."""
        shown = (beat for beat in beats if self.shows(beat.model))
        return [beat.model_copy(update={"reason": self.told(beat.reason)}) for beat in shown]

    def explanation(self, place: Explanation) -> Explanation:
        """Why a job of theirs is where it is."""
        return place.model_copy(update={"reason": self.told(place.reason)})


def names_for(caller: Caller, infos: Sequence[ModelInfo]) -> Names:
    """The names that a caller may read.

    Args:
        infos: All models and aliases.
    """
    if caller.models is None or caller.is_admin:
        return Names()
    mine = [info for info in infos if caller.may_use(info.id)]
    shown = frozenset(name for info in mine for name in (info.id, info.alias_of, *info.targets) if name)
    return Names(shown, frozenset(info.id for info in infos) - shown)


async def names_of(door: Door, caller: Caller) -> Names:
    """The same; the fleet is asked only for callers whom it concerns."""
    if caller.models is None or caller.is_admin:
        return Names()
    return names_for(caller, await door.fleet.models())


@contextmanager
def no_other_names(caller: Caller) -> Iterator[None]:
    """Leave out of an `UnknownModel`, which lists what there is, what this caller may not use."""
    try:
        yield
    except UnknownModel as error:
        known = [name for name in error.data["known"] if caller.may_use(name)]
        raise UnknownModel(model=str(error.data["model"]), known=known) from None
