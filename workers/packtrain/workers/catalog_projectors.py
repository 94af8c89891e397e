"""Which projector belongs to which model: said by packtrain.toml, else found by its name in the model's folder.

    qwen2-vl-2b-q4_k_m.gguf      qwen2-vl-2b-mmproj-f16.gguf     its own name begins with the projector's
    gemma-3-4b-q4_0.gguf         mmproj-model-f16.gguf           a projector without a name, in a folder of its kind

Names alone would give a text model the eyes of another one that lies beside it. So a projector that says how wide its
rows are must fit the model's tokens, and one without a name is only taken where all models of the folder are as wide.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from packtrain.broker.model_info import ModelFault
from packtrain.workers.gguf import GgufHeader
from packtrain.workers.model_files import ModelFile, ModelFiles

#: What projectors are called beside, or instead of, the name of their model, and their types.
_MARK = re.compile(r"mmproj|(?<![a-z])model(?![a-z])|(?<![a-z0-9])(?:f16|bf16|f32|q8_0|q5_k_m|q4_k_m|q4_0)$")
_BETWEEN = re.compile(r"[^a-z0-9]+")
#: Of several that fit the one in the first of these types: half precision loses nothing of what a model was made with.
TYPES = ("F16", "BF16", "Q8_0", "F32")


@dataclass(frozen=True, slots=True)
class FoundProjector:
    """A projector of a model."""

    file: ModelFile
    header: GgufHeader

    @property
    def fingerprint(self) -> str:
        """A name for its content, as of `ModelFiles`."""
        return ModelFiles((self.file,)).fingerprint


class ProjectorFinder:
    """Projectors among the files that a scan of the model folders has found.

    Args:
        folders: Model folders; earlier ones win.
        headers: Of every GGUF file there, or what is wrong with it.
    """

    def __init__(self, folders: Sequence[Path], headers: Mapping[ModelFile, GgufHeader | ModelFault]) -> None:
        self._folders = folders
        self._files = {file.path: (file, header) for file, header in headers.items()}
        self._by_folder: dict[Path, list[FoundProjector]] = {}
        self._widths: dict[Path, set[int]] = {}
        for file, header in headers.items():
            if isinstance(header, ModelFault):
                continue
            if header.projector:
                self._by_folder.setdefault(file.path.parent, []).append(FoundProjector(file, header))
            elif header.is_model and header.n_embd:
                self._widths.setdefault(file.path.parent, set()).add(header.n_embd)

    def find(self, said: str | bool | None, file: ModelFile, base: GgufHeader) -> FoundProjector | str | None:
        """The projector of a model; a text: why there is none although packtrain.toml names one.

        Args:
            said: By packtrain.toml: a path as seen from a model folder, False for none, None for whatever is found.
            file: Of the model, the first one.
            base: Its header.
        """
        if said is False:
            return None
        if isinstance(said, str):
            return self._named(said, base)
        beside = [found for found in self._by_folder.get(file.path.parent, ()) if _fits(found.header, base)]
        is_alike = self._widths.get(file.path.parent, set()) == {base.n_embd}
        return _best(beside, key_of(file.stem), is_alike=is_alike)

    def _named(self, path: str, base: GgufHeader) -> FoundProjector | str:
        places = (folder / path for folder in self._folders)
        found = next((self._files[place] for place in places if place in self._files), None)
        if found is None:
            return f"no file {path!r} is in the model folders; put it there or correct `mmproj`"
        file, header = found
        if isinstance(header, ModelFault):
            return header.reason
        if header.projector is None:
            return f"{path!r} is no projector but {'a model' if header.is_model else header.kind}; correct `mmproj`"
        if not _fits(header, base):
            width = header.projector.width
            return f"{path!r} makes rows of {width}, the model's have {base.n_embd}; use the one made for this model"
        return FoundProjector(file, header)


def _fits(header: GgufHeader, base: GgufHeader) -> bool:
    projector = header.projector
    return projector is not None and bool(projector.sees or projector.hears) and projector.width in (0, base.n_embd)


def _best(found: Sequence[FoundProjector], model: str, *, is_alike: bool) -> FoundProjector | None:
    names = {each.file.path: name_of(each.file.path.stem) for each in found}

    def rank(each: FoundProjector) -> tuple[int, int, str]:
        kind, path = each.header.quantization, each.file.path
        return -len(names[path]), TYPES.index(kind) if kind in TYPES else len(TYPES), path.name

    able = [each for each in found if (name := names[each.file.path]) and model.startswith(name)]
    able = able or [each for each in found if not names[each.file.path] and is_alike]
    return min(able, key=rank, default=None)


def name_of(stem: str) -> str:
    """The name of the model that a projector's file name says it is for, letters and digits alone; empty: none.

    >>> name_of("mmproj-Qwen2-VL-f16"), name_of("mmproj-model-f16")
    ('qwen2vl', '')
    """
    stem, before = stem.lower(), ""
    while stem != before:
        before, stem = stem, _MARK.sub("", stem).strip("-_. ")
    return _BETWEEN.sub("", stem)


def key_of(stem: str) -> str:
    """A model's file name as `name_of` has it: a projector is for it if that begins with the projector's."""
    return _BETWEEN.sub("", stem.lower())


def fingerprint_with(model: str, projector: FoundProjector | None) -> str:
    """A name for the content of a model's files together with its projector."""
    return hashlib.sha256(repr([model, projector.fingerprint]).encode()).hexdigest()[:32] if projector else model
