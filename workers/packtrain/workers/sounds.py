"""From the bytes of a sound to its samples, by libsndfile and libsoxr, in bounds.

As with pictures a well-worn decoder meets the bytes of strangers (libsndfile is fuzzed by OSS-Fuzz), and only of the
kind that the header says, for no longer than a sound may last.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import soundfile
import soxr

from packtrain.broker.errors import MediaUnreadable
from packtrain.broker.sounds import MAX_SECONDS, MIN_SECONDS, check_sound, read_sound_header

Samples = np.ndarray[Any, np.dtype[np.float32]]

#: Of each channel that are decoded at once.
BLOCK = 64 * 1024
#: For receipts: others may make other samples of a file.
VERSIONS = f"libsndfile {soundfile.__libsndfile_version__}, soxr {soxr.__version__}"


def decode(data: bytes, rate: int) -> Samples:
    """The samples, (count,) within [-1, 1], all channels as one. Blocks.

    Args:
        rate: Samples a second to have.

    Raises:
        MediaUnreadable: It is out of bounds, or not what its header says.
    """
    try:
        check_sound(data)
        header = read_sound_header(data)
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            if (file.samplerate, file.channels) != (header.rate, header.channels):
                raise ValueError(
                    f"its header says {header.channels} x {header.rate} Hz, its decoder {file.channels} x "
                    f"{file.samplerate}"
                )
            found = list(_resampled(file, rate))
        if sum(map(len, found)) < MIN_SECONDS * rate:
            raise ValueError("it breaks off at its beginning")
        return np.concatenate(found)
    except Exception as error:  # decoders raise whatever they like
        raise MediaUnreadable(
            f"a sound of the chat cannot be read ({type(error).__name__}: {error}); save it again as WAV or MP3"
        ) from error


def _resampled(file: soundfile.SoundFile, rate: int) -> Iterator[Samples]:
    """Block by block, so that only what comes out is ever there as a whole."""
    stream = soxr.ResampleStream(file.samplerate, rate, 1, dtype="float32")
    most = MAX_SECONDS * file.samplerate + BLOCK  # decoders may add some silence
    for block in file.blocks(BLOCK, frames=most, dtype="float32", always_2d=True):
        mono = np.clip(np.nan_to_num(block.mean(axis=1, dtype=np.float32)), -1, 1)
        yield np.asarray(stream.resample_chunk(mono), np.float32)
    yield np.asarray(stream.resample_chunk(np.zeros(0, np.float32), last=True), np.float32)
