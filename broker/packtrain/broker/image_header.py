"""What an image says of itself before anybody decodes it: its kind and its size, from some bytes at its front.

A few kilobytes can claim to be 30,000 x 30,000 pixels, which take gigabytes once they are decoded. So the size is read
here, in Python, with nothing but slices of bounds, and refused before a decoder sees the file. Four kinds are known;
whatever else it is, text, SVG, PDF or a film, is no image here.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Literal

Kind = Literal["png", "jpeg", "gif", "webp"]

#: Frames of a JPEG: its size stands in them. C4, C8 and CC are tables.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
#: Markers of a JPEG without a length.
_BARE = frozenset({0x01, *range(0xD0, 0xD8)})
#: Segments before the frame of a JPEG that are looked at; cameras write some 20.
_MAX_SEGMENTS = 1000


class NoImage(ValueError):
    """The bytes are no image that can be read; the message says why, without a remedy."""

    def __init__(self, why: str, *, is_begun: bool = True) -> None:
        super().__init__(why)
        self.is_begun = is_begun  # they begin as an image does


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """Kind and size in pixels."""

    kind: Kind
    width: int
    height: int
    is_animated: bool = False


def read_image_header(data: bytes) -> ImageHeader:
    """The header of an image.

    Raises:
        NoImage
    """
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return _png(data)
    if data[:3] == b"\xff\xd8\xff":
        return _jpeg(data)
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return _gif(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _webp(data)
    raise NoImage("it is none of PNG, JPEG, GIF and WebP", is_begun=False)


def _png(data: bytes) -> ImageHeader:
    if len(data) < 33 or data[12:16] != b"IHDR":
        raise NoImage("it is cut off within its header")
    width, height = struct.unpack(">II", data[16:24])
    return ImageHeader("png", width, height, is_animated=b"acTL" in data[: data.find(b"IDAT") + 1 or None][:4096])


def _jpeg(data: bytes) -> ImageHeader:
    at = 2
    for _ in range(_MAX_SEGMENTS):
        while data[at : at + 2] == b"\xff\xff":  # fill bytes
            at += 1
        if len(data) < at + 4:
            raise NoImage("it is cut off within its header")
        if data[at] != 0xFF:
            raise NoImage("its header is damaged")
        marker = data[at + 1]
        if marker in _BARE:
            at += 2
            continue
        if marker in _FRAMES:
            if len(data) < at + 9:
                raise NoImage("it is cut off within its header")
            height, width = struct.unpack(">HH", data[at + 5 : at + 9])
            return ImageHeader("jpeg", width, height)
        if marker in (0xD9, 0xDA):  # its end, or its pixels
            raise NoImage("its header says no size")
        at += 2 + max(2, int.from_bytes(data[at + 2 : at + 4], "big"))
    raise NoImage("its header is endless")


def _gif(data: bytes) -> ImageHeader:
    if len(data) < 13:
        raise NoImage("it is cut off within its header")
    width, height = struct.unpack("<HH", data[6:10])
    # The loop extension is in all that play on; whoever decodes counts the frames of the rest.
    return ImageHeader("gif", width, height, is_animated=b"NETSCAPE2.0" in data[:2048])


def _webp(data: bytes) -> ImageHeader:
    if len(data) < 30:
        raise NoImage("it is cut off within its header")
    match data[12:16]:
        case b"VP8X":
            width, height = (1 + int.from_bytes(data[at : at + 3], "little") for at in (24, 27))
            return ImageHeader("webp", width, height, is_animated=bool(data[20] & 2))
        case b"VP8L":
            bits = int.from_bytes(data[21:25], "little")
            return ImageHeader("webp", 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF))
        case b"VP8 ":
            width, height = (size & 0x3FFF for size in struct.unpack("<HH", data[26:30]))
            return ImageHeader("webp", width, height)
    raise NoImage("its header is damaged")
