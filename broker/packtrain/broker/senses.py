"""Media of a job against what the models of the fleet take, so that a blind one is refused when it is submitted."""

from __future__ import annotations

from collections.abc import Iterable

from packtrain.broker.errors import MediaUnsupported
from packtrain.broker.job_spec import JobSpec
from packtrain.broker.media import MODALITY_OF
from packtrain.broker.model_info import ModelInfo, model_named


def may_move(spec: JobSpec, models: Iterable[ModelInfo]) -> bool:
    """Whether a job with media would be taken wherever its name leads: by all targets that somebody offers.

    One that is not stays with the preferred target, rather than to fail at another one.
    """
    wanted = {MODALITY_OF[ref.kind] for ref in spec.media}
    known = {info.id: info for info in models}
    alias = known.get(spec.model)
    targets = [known[name] for name in alias.targets if name in known] if alias else []
    return all(wanted <= set(info.modalities) for info in targets)


def check_senses(spec: JobSpec, models: Iterable[ModelInfo]) -> None:
    """Refuse a job with media of a kind that its model is known not to take.

    An unknown model is left to the submit itself to refuse. Of a name with several targets the preferred one counts.

    Raises:
        MediaUnsupported
    """
    kinds = {ref.kind for ref in spec.media}
    if not kinds:
        return
    known = {info.id: info for info in models}
    info = model_named(spec.model, known.values())
    if info is None:
        return
    wanted = {MODALITY_OF[kind] for kind in kinds}
    for kind in sorted(kinds):
        if MODALITY_OF[kind] not in info.modalities:
            able = [name for name, other in known.items() if wanted <= set(other.modalities)]
            raise MediaUnsupported(model=info.id, kind=kind, takes=info.modalities, able=able, remote=info.remote)
