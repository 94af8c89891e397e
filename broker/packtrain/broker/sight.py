"""Images of a job against what the models of the fleet can see, so that a blind one is refused when it is submitted."""

from __future__ import annotations

from collections.abc import Iterable

from packtrain.broker.errors import ImagesUnsupported
from packtrain.broker.job_spec import JobSpec
from packtrain.broker.model_info import ModelInfo


def check_sight(spec: JobSpec, models: Iterable[ModelInfo]) -> None:
    """Refuse a job with images whose model is known to take text alone.

    An unknown model is left to the submit itself to refuse. Of a name with several targets the preferred one counts.

    Raises:
        ImagesUnsupported
    """
    if not spec.images:
        return
    known = {info.id: info for info in models}
    info = known.get(spec.model)
    if info and info.alias_of:
        info = known.get(info.alias_of)
    if info is None or "vision" in info.modalities:
        return
    able = [name for name, other in known.items() if "vision" in other.modalities]
    raise ImagesUnsupported(model=info.id, able=able)
