"""Sounds for tests, packed byte by byte, so that a test can make any of them and break any part."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator

import numpy as np
import soundfile


def samples(seconds: float, *, hertz: float = 440, rate: int = 16_000) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """A tone."""
    found: np.ndarray[tuple[int], np.dtype[np.float32]] = np.sin(
        np.arange(int(seconds * rate)) * 2 * np.pi * hertz / rate
    ).astype(np.float32)
    return found


def wav(
    seconds: float = 0.5, *, rate: int = 16_000, channels: int = 1, hertz: float = 440, claimed: int | None = None
) -> bytes:
    """A WAV of 16 bits.

    Args:
        claimed: Bytes of samples that its header speaks of, if others than there are.
    """
    tone = (20_000 * samples(seconds, hertz=hertz, rate=rate)).astype("<i2")
    data = np.repeat(tone, channels).tobytes()
    form = struct.pack("<HHIIHH", 1, channels, rate, rate * channels * 2, channels * 2, 16)
    size = len(data) if claimed is None else claimed
    body = b"WAVE" + b"fmt " + struct.pack("<I", 16) + form + b"data" + struct.pack("<I", size) + data
    return b"RIFF" + struct.pack("<I", min(len(body), 2**32 - 1)) + body


def encoded(
    kind: str, seconds: float = 0.5, *, rate: int = 16_000, channels: int = 1, subtype: str | None = None
) -> bytes:
    """What libsndfile writes."""
    file = io.BytesIO()
    tone = np.repeat(samples(seconds, rate=rate)[:, None], channels, axis=1)
    soundfile.write(file, 0.5 * tone, rate, format=kind, subtype=subtype)
    return file.getvalue()


def hostile() -> Iterator[tuple[str, bytes]]:
    """Sounds that are none, or too much, by what is wrong with them."""
    whole = wav()
    yield "a header alone", whole[:44]
    yield "half a header", whole[:30]
    yield "text", b"What do you hear?"
    yield "nothing", b""
    yield "an hour", wav(3601, rate=4000)[: 16 * 1024 * 1024]
    yield "192 kHz", wav(0.5, rate=192_000)
    yield "40 channels", wav(0.1, channels=40)
    yield "no rate", whole[:24] + bytes(4) + whole[28:]
    yield "an AVI", b"RIFF" + whole[4:8] + b"AVI " + whole[12:]
    yield "a FLAC", encoded("FLAC")
    yield "frames without samples", b"\xff\xfb\x90\x00" + bytes(413)
    yield "a tag alone", b"ID3\x04\x00\x00\x00\x00\x0f\x7f" + bytes(2047)
