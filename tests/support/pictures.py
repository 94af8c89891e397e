"""Pictures for tests, packed byte by byte, so that a test can make any of them and break any part."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: Pictures of shapes, the projector that sees them, and how well it does: see the README there.
ASSETS = Path(__file__).parents[1] / "assets" / "vision"
PROJECTOR = ASSETS / "smollm2-shapes-mmproj.gguf"
#: Right answers to the questions about the 24 samples, as the README there has them.
EXPECTED = {"colour": 24, "shape": 23, "count": 23, "describe": 23}


@dataclass(frozen=True, slots=True)
class Sample:
    """A picture with questions about it and the right answers, both by kind."""

    path: Path
    questions: dict[str, str]
    answers: dict[str, str]

    @property
    def data(self) -> bytes:
        return self.path.read_bytes()


def samples() -> list[Sample]:
    """All that are shipped."""
    shipped = json.loads((ASSETS / "samples.json").read_text())
    return [Sample(ASSETS / each["file"], each["questions"], each["answers"]) for each in shipped]


def png(width: int, height: int, *, colour: tuple[int, int, int] = (200, 30, 30), tail: bytes = b"") -> bytes:
    """A PNG of one colour, whole and right."""
    rows = (b"\0" + bytes(colour) * width) * height
    return _png(width, height, zlib.compress(rows)) + tail


def png_bomb(width: int, height: int) -> bytes:
    """A PNG that claims to be so large, and has pixels for next to nothing."""
    return _png(width, height, zlib.compress(b"\0" * 100))


def _png(width: int, height: int, pixels: bytes) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        _chunk(kind, data)
        for kind, data in (
            (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", pixels), (b"IEND", b""),
        )
    )  # fmt: skip


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def part(data: bytes, kind: str = "image/png") -> dict[str, Any]:
    """An image as a part of a turn in OpenAI's chats."""
    import base64

    return {"type": "image_url", "image_url": {"url": f"data:{kind};base64,{base64.b64encode(data).decode()}"}}


def asked(data: bytes, question: str) -> list[dict[str, Any]]:
    """A chat of one turn: a picture and a question."""
    return [{"role": "user", "content": [part(data), {"type": "text", "text": question}]}]


def hostile() -> Iterator[tuple[str, bytes]]:
    """Pictures that are none, or too much, by what is wrong with them."""
    whole = png(64, 64)
    yield "truncated", whole[: len(whole) // 2]
    yield "a header alone", whole[:33]
    yield "30,000 x 30,000", png_bomb(30_000, 30_000)
    yield "text", b"What is in this picture?"
    yield "nothing", b""
    yield "an SVG", b'<svg xmlns="http://www.w3.org/2000/svg" width="64" height="64"><circle r="9"/></svg>'
    yield "a PDF", b"%PDF-1.7\n" + bytes(100)
    yield "1 pixel", png(1, 1)
    yield "a line", png(4096, 1)
    yield "a page that begins like a GIF", b"GIF89a/*" + b"<script>alert(1)</script>*/=1;" + bytes(64)
    yield "JPEG without a size", b"\xff\xd8\xff\xd9" + bytes(64)
    yield "damaged pixels", _png(64, 64, b"\x78\x9c" + bytes(200))
