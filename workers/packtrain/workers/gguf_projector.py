"""Projectors: the file beside a model that turns images or sounds into rows of the model's own input (an `mmproj`).

What its header tells is enough to say which models it can be for, what those can do with it, and about how much memory
it takes. Whether it really fits is llama.cpp's to say when it is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass

from packtrain.broker.images import MAX_PIXELS
from packtrain.broker.media import Modality
from packtrain.broker.model_info import ModelMemory
from packtrain.workers.gguf_form import Form

_PREFIX = {"vision": "clip.vision.", "audio": "clip.audio."}
#: Bounds of what stands in products here; real ones are far below.
MAX_SIZE, MAX_SIDE = 2**17, 2**14
FLOAT_BYTES = 4
#: Positions that audio encoders of Whisper's kind compute at once: 30 s.
SOUND_POSITIONS = 1500
#: Of a picture while it is read, by the decoder and by llama.cpp: one of 4096 x 4096 took 176 MiB at most.
PIXEL_BYTES = 11
#: Of a sound while it is read and its spectrum made: one of 5 minutes took 40 MiB, and its file may have 16, twice.
SOUND_BYTES = 72 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class ProjectorHeader:
    """What the header of a projector tells."""

    sees: bool
    hears: bool
    width: int  # elements of a row that it makes, those of a token of its model; 0: not said
    compute_bytes: int  # of encoding one image of its native size, or 30 s of sound, about

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """What a model with it takes."""
        found: list[Modality] = ["text"]
        if self.sees:
            found.append("vision")
        if self.hears:
            found.append("audio")
        return tuple(found)


def read_projector(form: Form) -> ProjectorHeader:
    """What a well-formed file of kind `mmproj` tells. Never raises: a number that is none counts as 0."""

    def whole(key: str, most: int) -> int:
        value = form.pairs.get(key, 0)
        return value if type(value) is int and 0 <= value <= most else 0

    sees, hears = (form.pairs.get(f"clip.has_{kind}_encoder") is True for kind in ("vision", "audio"))
    vision = _PREFIX["vision"]
    patch = whole(vision + "patch_size", MAX_SIDE)
    side = whole(vision + "image_size", MAX_SIDE)
    n_patches = (side // patch) ** 2 if patch else 0
    wide = max(whole(vision + "feed_forward_length", MAX_SIZE), whole(vision + "embedding_length", MAX_SIZE))
    scores = n_patches * whole(vision + "attention.head_count", MAX_SIZE)
    widths = [whole(prefix + "projection_dim", MAX_SIZE) for prefix in _PREFIX.values()]
    # A few activations as wide as the feed-forward for each patch, its attention to all others, the image in float.
    compute = FLOAT_BYTES * (n_patches * (4 * wide + scores) + 2 * 3 * side * side) if sees else 0
    if hears:
        audio = _PREFIX["audio"]
        wide = max(whole(audio + "feed_forward_length", MAX_SIZE), whole(audio + "embedding_length", MAX_SIZE))
        compute = max(compute, FLOAT_BYTES * SOUND_POSITIONS * 6 * wide)
    return ProjectorHeader(sees, hears, next(filter(None, widths), 0), compute)


def with_projector(memory: ModelMemory, header: ProjectorHeader | None, tensor_bytes: int) -> ModelMemory:
    """What an instance takes with a projector, or without one."""
    if header is None:
        return memory
    picture = max(MAX_PIXELS * PIXEL_BYTES * header.sees, SOUND_BYTES * header.hears)
    return memory.model_copy(update={"image_bytes": tensor_bytes + header.compute_bytes, "picture_bytes": picture})
