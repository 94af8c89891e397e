"""Receipts: what exactly computed an answer, in hashes, so that it can be computed again and compared.

Inside one *numerics class* a deterministic job gives the same bits: same weights and adapters, same build of
llama.cpp with the same CPU features, same recipe. The class is a hash over just these. Slots, context, threads, company
and node are not in it, because by the recipe they change nothing, which `packtrain verify` and the tests show.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from packtrain.broker.fields import Numerics, Recipe
from packtrain.broker.outcome import Receipt, UsedAdapter
from packtrain.workers.adapters import AdapterFile, AdapterSet
from packtrain.workers.engine.media import IMAGE_ROW
from packtrain.workers.model_files import parts_of

logger = logging.getLogger(__name__)

READ_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Build:
    """The library behind a backend."""

    library: str  # name and version
    features: str  # what it was built with and found in the CPU
    flags: str  # how the model was loaded, as far as it tells on the bits


class Prover(Protocol):
    """Says what computed an answer: `Computer`, or `remote.RemoteServer`."""

    def receipt(
        self,
        *,
        threads: int,
        seed: int,
        prompt: Sequence[int],
        output: Sequence[int] | bytes,
        adapters: AdapterSet = (),
        media: Sequence[str] = (),
    ) -> Receipt:
        """For one answer.

        Args:
            output: Token ids, or the bytes of a vector.
            adapters: That it was computed with.
            media: Of the prompt, by their hashes, in order.
        """
        ...


@dataclass(frozen=True, slots=True)
class Computer:
    """What computes the answers of one instance."""

    build: Build
    model_sha256: str
    numerics: Numerics
    recipe: Recipe
    adapter_sha256: Mapping[str, str] = field(default_factory=dict)  # by name
    projector_sha256: str = ""
    decoder: str = ""  # of images and sounds, names and versions: others may give a JPEG other pixels

    @property
    def numerics_class(self) -> str:
        """16 hex digits; equal where equal jobs without adapters get equal bits."""
        return self.class_with(())

    def class_of_moves(self, scales: Mapping[str, float]) -> str:
        """16 hex digits; equal where a begun job may go on. Without adapters it is `numerics_class`; else all of them
        count, with names and scales, for a claim does not know which a job has.

        Args:
            scales: Of jobs that name an adapter without one.
        """
        adapters = [f"{name} {sha256} {scales[name]}" for name, sha256 in sorted(self.adapter_sha256.items())]
        if not adapters:
            return self.numerics_class
        return hashlib.sha256("\0".join([self.numerics_class, *adapters]).encode()).hexdigest()[:16]

    def class_with(self, adapters: AdapterSet) -> str:
        """The same for jobs with these adapters: their files count, not what they are called."""
        files = [self.adapter_sha256.get(name, "") for name, _ in adapters]
        if self.projector_sha256:
            files += [self.projector_sha256, self.decoder]
        parts = (self.build.library, self.build.features, self.build.flags, self.model_sha256, self.recipe, *files)
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]

    def receipt(
        self,
        *,
        threads: int,
        seed: int,
        prompt: Sequence[int],
        output: Sequence[int] | bytes,
        adapters: AdapterSet = (),
        media: Sequence[str] = (),
    ) -> Receipt:
        return Receipt(
            model_sha256=self.model_sha256,
            numerics=self.numerics,
            recipe=self.recipe,
            numerics_class=self.class_with(adapters),
            library=self.build.library,
            features=self.build.features,
            flags=self.build.flags,
            threads=threads,
            seed=seed,
            prompt_sha256=tokens_sha256(max(token, IMAGE_ROW) for token in prompt),
            output_sha256=_output_sha256(output),
            adapters=tuple(
                UsedAdapter(name=name, scale=scale, sha256=self.adapter_sha256.get(name, ""))
                for name, scale in adapters
            ),
            media=tuple(media),
            projector_sha256=self.projector_sha256,
        )


def _output_sha256(output: Sequence[int] | bytes) -> str:
    return hashlib.sha256(output).hexdigest() if isinstance(output, bytes) else tokens_sha256(output)


def tokens_sha256(tokens: Iterable[int]) -> str:
    """Of token ids as 32-bit little-endian integers."""
    ids = array("i", tokens)
    if sys.byteorder != "little":
        ids.byteswap()
    return hashlib.sha256(ids.tobytes()).hexdigest()


def model_sha256(path: Path, cache: Path) -> str:
    """Of a model file; of a split model, of the hashes of its parts. Blocks for about a second per gigabyte, once.

    Args:
        path: GGUF file or the first part.
        cache: JSON file that remembers hashes by path, size and times of change.
    """
    parts = parts_of(path)
    hashes = [file_sha256(part, cache) for part in parts]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def adapter_sha256(files: Iterable[AdapterFile], cache: Path) -> dict[str, str]:
    """Of adapters, by name; arguments as of `model_sha256`. One that cannot be read has none, nor can it be used."""
    found = {}
    for file in files:
        with suppress(OSError):
            found[file.name] = model_sha256(Path(file.path), cache)
    return found


def file_sha256(path: Path, cache: Path, on_read: Callable[[int], None] = lambda _: None) -> str:
    """Of one file; arguments as of `model_sha256`.

    Args:
        on_read: Told of every piece of bytes, from this thread.
    """
    if known := known_sha256(path, cache):
        return known
    status = path.stat()
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        buffer = bytearray(READ_BYTES)
        while count := file.readinto(buffer):
            digest.update(memoryview(buffer)[:count])
            on_read(count)
    note_sha256(path, cache, digest.hexdigest(), status)
    return digest.hexdigest()


def known_sha256(path: Path, cache: Path) -> str:
    """The hash of a file that was hashed before and has not changed; else empty."""
    entry = _read(cache).get(str(path))
    is_same = isinstance(entry, list) and len(entry) == 4 and entry[:3] == _identity(path.stat())
    return str(entry[3]) if isinstance(entry, list) and is_same else ""


def note_sha256(path: Path, cache: Path, sha256: str, status: os.stat_result | None = None) -> None:
    """Remember what the hash of a file is.

    Args:
        status: Of the file when its hash was found; None: now.
    """
    _write(cache, {**_read(cache), str(path): [*_identity(status or path.stat()), sha256]})


def _identity(status: os.stat_result) -> list[int]:
    # Tools that copy may keep the time of change; nobody can keep the time of the inode's.
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _read(cache: Path) -> dict[str, object]:
    try:
        known = json.loads(cache.read_text())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _write(cache: Path, known: dict[str, object]) -> None:
    # Two instances that write at once may lose one entry, which costs one more hashing and nothing else.
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        draft = cache.with_name(f"{cache.name}.{os.getpid()}")
        draft.write_text(json.dumps(known))
        draft.replace(cache)
    except OSError as error:
        logger.warning("Could not note a hash in %s: %s", cache, error, extra={"event": "hash.unnoted"})
