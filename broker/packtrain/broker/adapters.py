"""Adapters of a job against those that the registry knows, so that a wrong name is refused when it is submitted."""

from __future__ import annotations

from collections.abc import Iterable

from packtrain.broker.errors import AdapterUnavailable
from packtrain.broker.job_spec import JobSpec
from packtrain.broker.model_info import ModelInfo, model_named


def check_adapters(spec: JobSpec, models: Iterable[ModelInfo]) -> None:
    """Refuse a job that names an adapter which its model has not, or cannot use.

    An unknown model is left to the submit itself to refuse.

    Raises:
        AdapterUnavailable
    """
    if not spec.adapters:
        return
    info = model_named(spec.model, models)
    if info is None:
        return
    faults = {adapter.name: adapter.fault for adapter in info.adapters}
    for name in spec.adapters:
        if faults.get(name, "unknown"):
            usable = [adapter.name for adapter in info.adapters if not adapter.fault]
            raise AdapterUnavailable(adapter=name, model=info.id, usable=usable, fault=faults.get(name, ""))
