"""Sounds of a job: which are taken, and how chats write them down. What becomes of them: media.py.

As with images, kind and length are read from the bytes here, in Python, before a decoder sees them: a file of some
kilobytes can claim to last for hours.
"""

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

#: Of one sound, as it is sent: 3 minutes of 16 bits, mono, 44.1 kHz have 15 MiB; as MP3, 5 minutes have about 5.
MAX_SOUND_BYTES = 16 * 1024 * 1024
#: Models cut sounds into pieces of 30 s, some hundred tokens each.
MAX_SECONDS = 300
MIN_SECONDS = 0.05
MIN_RATE, MAX_RATE, MAX_CHANNELS = 4000, 48_000, 8
_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
#: Chunks of a WAV file before its samples that are looked at; programs write some 3.
_MAX_CHUNKS = 100
#: By version: 1, 2 and 2.5; kbit/s of layer III, Hz.
_BITRATES = (
    (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
)
_RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8000)}
#: Bytes that may lie before the first frame of an MP3, apart from its tags.
_MAX_LEAD = 4096
_PART = 'a sound is like {"type": "input_audio", "input_audio": {"data": "base64 of the file", "format": "wav"}}'


class NoSound(ValueError):
    """The bytes are no sound that can be read; the message says why, without a remedy."""


@dataclass(frozen=True, slots=True)
class SoundHeader:
    """What a file says of itself."""

    kind: Literal["wav", "mp3"]
    rate: int  # samples a second
    channels: int
    seconds: float


def check_sound(data: bytes) -> None:
    """Refuse what no model is played: no sound, or one out of bounds.

    Raises:
        ValueError: Why, with the remedy.
    """
    if len(data) > MAX_SOUND_BYTES:
        raise ValueError(
            f"the sound has {len(data)} bytes, at most {MAX_SOUND_BYTES} are taken; send it as MP3, or cut"
        )
    try:
        header = read_sound_header(data)
    except NoSound as error:
        raise ValueError(f"the sound cannot be read: {error}; send a WAV or MP3 file") from None
    if not MIN_SECONDS <= header.seconds <= MAX_SECONDS:
        raise ValueError(f"the sound lasts {header.seconds:.2f} s, {MIN_SECONDS} to {MAX_SECONDS} s are taken; cut it")
    if not MIN_RATE <= header.rate <= MAX_RATE or header.channels > MAX_CHANNELS:
        raise ValueError(
            f"the sound has {header.channels} channels of {header.rate} Hz; up to {MAX_CHANNELS} of {MIN_RATE} to "
            f"{MAX_RATE} Hz are taken, convert it"
        )


def read_sound_header(data: bytes) -> SoundHeader:
    """The header of a sound.

    Raises:
        NoSound
    """
    if data[:4] == b"RIFF" and data[8:12] == b"WAVE":
        return _wav(data)
    if data[:3] == b"ID3" or _frame(data, 0):
        return _mp3(data)
    raise NoSound("it is neither WAV nor MP3")


def sound_of_part(part: Mapping[str, Any]) -> bytes:
    """The bytes of a content part of type `input_audio`.

    Raises:
        ValueError: It has not its form.
    """
    given = part.get("input_audio")
    data = given.get("data") if isinstance(given, Mapping) else None
    if isinstance(data, bytes | bytearray):
        return bytes(data)
    if not isinstance(data, str):
        raise ValueError(_PART)
    if len(data) > MAX_SOUND_BYTES * 4 // 3 + 4:
        raise ValueError(f"the sound has over {MAX_SOUND_BYTES} bytes, which are the most that are taken; cut it")
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"the sound is no base64 ({error}); {_PART}") from None


def part_of_sound(data: bytes) -> dict[str, Any]:
    """A sound as a content part, which is how chats hold it."""
    try:
        kind: str = read_sound_header(data).kind
    except NoSound:
        kind = "wav"  # whoever reads it says what is wrong with it
    return {"type": "input_audio", "input_audio": {"data": base64.b64encode(data).decode(), "format": kind}}


def _wav(data: bytes) -> SoundHeader:
    at, form = 12, b""
    for _ in range(_MAX_CHUNKS):
        if len(data) < at + 8:
            break
        name, size = data[at : at + 4], struct.unpack_from("<I", data, at + 4)[0]
        if name == b"fmt ":
            form = data[at + 8 : at + 8 + min(size, 40)]
        elif name == b"data":
            return _of_samples(form, min(size or 2**32, len(data) - at - 8))  # who writes to a pipe does not know it
        at += 8 + size + size % 2
    raise NoSound("it is cut off within its header")


def _of_samples(form: bytes, num_bytes: int) -> SoundHeader:
    if len(form) < 16:
        raise NoSound("it does not say what its samples are")
    code, channels, rate, _, block, bits = struct.unpack_from("<HHIIHH", form)
    if code == _EXTENSIBLE and len(form) >= 26:
        code = struct.unpack_from("<H", form, 24)[0]
    if (code, bits) not in ((_PCM, 8), (_PCM, 16), (_PCM, 24), (_PCM, 32), (_FLOAT, 32), (_FLOAT, 64)):
        raise NoSound(f"its samples are of form {code} with {bits} bits, and only PCM and floats are read")
    if not channels or not rate or block != channels * bits // 8:
        raise NoSound("its header is damaged")
    return SoundHeader("wav", rate, channels, num_bytes // block / rate)


def _mp3(data: bytes) -> SoundHeader:
    at = 0
    if data[:3] == b"ID3" and len(data) >= 10:
        a, b, c, d = data[6:10]  # 7 bits of each
        at = 10 + (a << 21 | b << 14 | c << 7 | d)
    end = min(len(data) - 4, at + _MAX_LEAD)
    at = next((place for place in range(at, end) if _follows(data, place)), len(data))
    first, count = _frame(data, at), 0
    if first is None:
        raise NoSound("it has no frames of MP3")
    rate, channels, samples, _ = first
    while (frame := _frame(data, at)) and count * samples <= MAX_SECONDS * rate:
        at, count = at + frame[3], count + 1
    return SoundHeader("mp3", rate, channels, count * samples / rate)


def _follows(data: bytes, at: int) -> bool:
    """Whether a frame stands here, and behind it the next, or nothing."""
    frame = _frame(data, at)
    return frame is not None and (at + frame[3] + 4 > len(data) or _frame(data, at + frame[3]) is not None)


def _frame(data: bytes, at: int) -> tuple[int, int, int, int] | None:
    """Rate, channels, samples and bytes of a frame of MP3; None: there is none."""
    if len(data) < at + 4 or data[at] != 0xFF or data[at + 1] & 0xE6 != 0xE2:  # 11 bits of sync, layer III
        return None
    version, bitrate, rate = data[at + 1] >> 3 & 3, data[at + 2] >> 4, data[at + 2] >> 2 & 3
    if version not in _RATES or not 1 <= bitrate <= 14 or rate == 3:
        return None
    is_first, padding, hertz = version == 3, data[at + 2] >> 1 & 1, _RATES[version][rate]
    kilobits = _BITRATES[0 if is_first else 1][bitrate - 1]
    samples = 1152 if is_first else 576
    channels = 1 if data[at + 3] >> 6 == 3 else 2
    return hertz, channels, samples, samples // 8 * 1000 * kilobits // hertz + padding
