"""A snapshot with indices: what one plan asks again and again, found once.

A fleet of 1,000 nodes and 200 models has 200,000 offers, so nothing here walks over those of a model that nobody asks
for, and nothing over those of any model twice.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from packtrain.broker.beats import InstanceBeat, NodeBeat
from packtrain.broker.fields import Numerics
from packtrain.broker.ids import ModelId, NodeId, Route, is_deterministic, model_of
from packtrain.broker.model_info import ModelInfo
from packtrain.broker.offer_book import NodeOffers
from packtrain.broker.placement.snapshot import Snapshot
from packtrain.broker.states import InstanceState


@dataclass(frozen=True, slots=True)
class Rules:
    """What is said of a model by all its nodes together: what one node's packtrain.toml asks for holds for all."""

    min_replicas: int = 0
    max_replicas: int = 0  # 0: one on each node
    labels: tuple[tuple[str, str], ...] = ()  # that a node must have
    split_over: tuple[str, ...] = ()  # nodes that always hold it together
    least_bytes: int = 0  # that any node needs for it
    is_fetchable: bool = False  # from some node

    def admit(self, node: NodeBeat) -> bool:
        """True when the node has all labels."""
        return all(node.labels.get(name) == value for name, value in self.labels)


class View:
    """A snapshot, indexed. Lists of instances keep the snapshot's order."""

    def __init__(self, now: Snapshot) -> None:
        self.now = now
        self.open_nodes = {NodeId(n.node): n for n in now.nodes if not n.draining and not n.quarantine}
        self.alive_on: dict[str, list[InstanceBeat]] = defaultdict(list)  # by node
        self.of_model: dict[str, list[InstanceBeat]] = defaultdict(list)  # shards and those that ended lately, too
        self._heads = {i.instance: i for i in now.instances if i.group == i.instance}
        for instance in now.instances:
            self.of_model[instance.model].append(instance)
            if not instance.state.is_terminal:
                self.alive_on[instance.node].append(instance)
        self._rules: dict[ModelId, Rules] = {}
        self._has_files = any(node.files_url for node in self.open_nodes.values())
        self._waited_for = {route for route, count in now.waiting.items() if count}

    def offers(self, model: ModelId) -> Mapping[NodeId, ModelInfo]:
        """Live nodes that have a model, each as it would load it.

        Where one has its projector, too, only those that have it: a model that sees must not go blind with the node.
        """
        if self.now.offers:
            return self._that_see(self.now.offers.get(model, {}))
        info = self.now.models.get(model)
        return {NodeId(node.node): info for node in self.now.nodes if model in node.models} if info else {}

    @staticmethod
    def _that_see(said: Mapping[NodeId, ModelInfo]) -> Mapping[NodeId, ModelInfo]:
        each = said if isinstance(said, NodeOffers) else NodeOffers(said)
        most = max((len(offer.modalities) for offer in each.distinct()), default=1)
        if most == 1 or all(len(offer.modalities) == most for offer in each.distinct()):
            return said
        return NodeOffers({node: offer for node, offer in said.items() if len(offer.modalities) == most})

    def offer(self, node: str, model: ModelId) -> ModelInfo | None:
        """How a node would load a model, else how some other would."""
        return self.now.offers.get(model, {}).get(NodeId(node)) or self.now.models.get(model)

    def rules(self, model: ModelId) -> Rules:
        """What is said of a model by all nodes that have it."""
        if model not in self._rules:
            offers = self.offers(model)
            said = (offers if isinstance(offers, NodeOffers) else NodeOffers(offers)).distinct()
            labels = {pair for offer in said if offer.nodes for pair in offer.nodes.items()}
            self._rules[model] = Rules(
                min_replicas=max((offer.min_replicas for offer in said), default=0),
                max_replicas=max((offer.max_replicas for offer in said), default=0),
                labels=tuple(sorted(labels)),
                split_over=max((offer.split_over for offer in said), default=()),
                least_bytes=min((offer.required_bytes for offer in said), default=0),
                is_fetchable=self._has_files and any(offer.fetchable and offer.file_bytes for offer in said),
            )
        return self._rules[model]

    def floor(self, model: ModelId) -> int:
        """Replicas to keep loaded whether or not jobs wait."""
        wanted = self.now.desired.get(model)
        return max(wanted.replicas if wanted else 0, self.rules(model).min_replicas)

    def unload_before_ms(self, model: ModelId) -> int:
        """Instances requested before are to be unloaded, an operator says."""
        wanted = self.now.desired.get(model)
        return wanted.unload_before_ms if wanted else 0

    def asked_ms(self, model: ModelId) -> int:
        """When an operator last asked for it; 0: never."""
        wanted = self.now.desired.get(model)
        return wanted.asked_ms if wanted else 0

    def up(self, route: Route) -> list[InstanceBeat]:
        """Instances that serve a route or will soon."""
        return [i for i in self.of_model.get(model_of(route), ()) if is_up(i) and i.serves(route)]

    def head_of(self, instance: InstanceBeat) -> InstanceBeat | None:
        """The instance that stands for one to the outside: itself, or of a shard its head, as it was last told.

        None when that is gone: then the shard is about to follow it.
        """
        group = instance.group
        return instance if not group or group == instance.instance else self._heads.get(group)

    def group_of(self, instance: InstanceBeat) -> list[InstanceBeat]:
        """All members of a group, those that ended, too; of one that has the whole model, itself."""
        if not instance.group:
            return [instance]
        return [i for i in self.of_model[instance.model] if i.group == instance.group]

    def is_waited_for(self, instance: InstanceBeat) -> bool:
        """True when jobs wait that it could run."""
        return any(instance.serves(route) for route in self._routes_of(instance.model))

    def waited_ms(self, route: Route) -> int:
        """How long jobs have waited on a route with nobody to serve it."""
        return self.now.now_ms - self.now.unserved_since.get(route, self.now.now_ms)

    def numerics(self, route: Route, offer: ModelInfo) -> Numerics:
        """How a node would load a model for the jobs of a route."""
        return "deterministic" if is_deterministic(route) else offer.numerics

    def _routes_of(self, model: str) -> list[Route]:
        return [route for route in (Route(model), Route(f"{model}@deterministic")) if route in self._waited_for]


def is_up(instance: InstanceBeat) -> bool:
    """True for one that is READY or on its way there, which a shard never is."""
    return not (instance.state.is_terminal or instance.state is InstanceState.DRAINING or instance.is_shard)
