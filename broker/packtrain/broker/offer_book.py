"""The offer book: what every node says of its models, turned round so that placement finds all nodes of one model.

A node writes one text per model and a digest of them all. Who keeps a book reads again only nodes whose digest is a new
one, and equal texts become one object: in a fleet of 1,000 nodes and 200 models most of the 200,000 offers are equal.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence

from packtrain.broker.ids import ModelId, NodeId
from packtrain.broker.model_info import ModelInfo

logger = logging.getLogger(__name__)

#: What nodes say of their models: by model, then by node.
Offers = Mapping[ModelId, Mapping[NodeId, ModelInfo]]
#: The field of the digest, which is no model id.
DIGEST = "#digest"


def to_offers(models: Sequence[ModelInfo]) -> dict[str, str]:
    """A catalog as the fields of a hash."""
    said = {info.id: info.offer().model_dump_json(exclude_defaults=True) for info in models}
    digest = hashlib.sha256("\n".join(said.values()).encode()).hexdigest()[:32]
    return {**said, DIGEST: digest}


class NodeOffers(dict[NodeId, ModelInfo]):
    """What nodes say of one model. Whoever changes it says so by `changed`."""

    __slots__ = ("_distinct",)
    _distinct: tuple[ModelInfo, ...] | None

    def __init__(self, said: Mapping[NodeId, ModelInfo] | None = None) -> None:
        super().__init__(said or {})
        self._distinct = None

    def changed(self) -> None:
        """Forget what was found out."""
        self._distinct = None

    def distinct(self) -> tuple[ModelInfo, ...]:
        """Each object once: what all nodes together say of a model is found without asking a thousand of them."""
        if self._distinct is None:
            self._distinct = tuple({id(info): info for info in self.values()}.values())
        return self._distinct


class OfferBook:
    """What was read so far. For one thread."""

    def __init__(self) -> None:
        self.by_model: dict[ModelId, NodeOffers] = {}
        self._digests: dict[NodeId, str] = {}
        self._models: dict[NodeId, tuple[ModelId, ...]] = {}
        self._texts: dict[str, ModelInfo] = {}

    def changed(self, digests: Mapping[NodeId, str | None]) -> list[NodeId]:
        """Forget nodes that are not among these; those to read again, since their digest is a new one."""
        for node in [node for node in self._digests if not digests.get(node)]:
            self._forget(node)
        return [node for node, digest in digests.items() if digest and self._digests.get(node) != digest]

    def put(self, node: NodeId, said: Mapping[str, str]) -> None:
        """What a node says now, as `to_offers` made it. What cannot be read hides nothing else."""
        self._forget(node)
        if DIGEST not in said:  # it has left between two reads
            return
        found: list[ModelId] = []
        for name, text in said.items():
            if name == DIGEST:
                continue
            try:
                info = self._texts.get(text) or ModelInfo.model_validate_json(text)
            except ValueError as error:
                logger.warning(
                    "Cannot read what %s says of %s: %s", node, name, error, extra={"event": "registry.unreadable"}
                )
                continue
            self._texts[text] = info
            offers = self.by_model.setdefault(ModelId(name), NodeOffers())
            offers[node] = info
            offers.changed()
            found.append(ModelId(name))
        self._digests[node], self._models[node] = said[DIGEST], tuple(found)
        if len(self._texts) > 2 * sum(map(len, self._models.values())) + 1000:  # of what was said once
            self._texts.clear()

    def _forget(self, node: NodeId) -> None:
        self._digests.pop(node, None)
        for model in self._models.pop(node, ()):
            offers = self.by_model[model]
            del offers[node]
            offers.changed()
            if not offers:
                del self.by_model[model]
