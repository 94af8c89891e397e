"""Images as Python programs have them: paths, bytes, data: URLs, or Pillow's; each becomes bytes of a file.

Only here a text may be a path. What comes over HTTP never passes here: nobody can ask a gateway for its files.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from packtrain.broker.errors import InvalidParameter
from packtrain.broker.images import MAX_IMAGE_BYTES, check_image, from_data_uri


def read_image(image: object) -> bytes:
    """The bytes of an image.

    Args:
        image: A path (`str` or `Path`), the bytes of a file, a data: URL, or an image of Pillow.

    Raises:
        InvalidParameter: It is none of these, cannot be read, or is no image.
    """
    try:
        data = _read(image)
        check_image(data)
    except OSError as error:
        raise InvalidParameter(f"{image!r:.200} cannot be read ({error.strerror or error})", field="images") from error
    except ValueError as error:
        shown = f"{image!r:.80}: " if isinstance(image, str | os.PathLike) else ""
        raise InvalidParameter(f"{shown}{error}", field="images") from error
    return data


def with_images(turns: Sequence[Mapping[str, Any]], images: object) -> list[dict[str, Any]]:
    """A chat with these images before the text of its last turn.

    Raises:
        InvalidParameter
    """
    many = list(images) if isinstance(images, list | tuple) else [images]
    *before, last = [dict(turn) for turn in turns]
    text = last.get("content")
    shown = [{"type": "image_url", "image_url": {"url": read_image(image)}} for image in many]
    said = [{"type": "text", "text": text}] if isinstance(text, str) else list(text or ())
    return [*before, {**last, "content": [*shown, *said]}]


def read_parts(turn: Mapping[str, Any]) -> dict[str, Any]:
    """A turn whose images are bytes or data: URLs, whatever a program has put there."""
    content = turn.get("content")
    if not isinstance(content, list | tuple):
        return dict(turn)
    return {**turn, "content": [_part(part) for part in content]}


def _part(part: object) -> object:
    if not isinstance(part, Mapping) or part.get("type") != "image_url":
        return part
    given = part.get("image_url")
    url = given.get("url") if isinstance(given, Mapping) else given
    # A text is a URL there, as everywhere; a path has to be a Path.
    return part if isinstance(url, str | None) else {"type": "image_url", "image_url": {"url": read_image(url)}}


def _read(image: object) -> bytes:
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    if isinstance(image, str) and image.startswith("data:"):
        return from_data_uri(image)
    if isinstance(image, str | os.PathLike):
        path = Path(image)
        if (size := path.stat().st_size) > MAX_IMAGE_BYTES:
            raise ValueError(f"it has {size} bytes, at most {MAX_IMAGE_BYTES} are taken; scale it down")
        return path.read_bytes()
    save: Any = getattr(image, "save", None)
    if save is None:
        raise ValueError(
            f"an image is a path, bytes, a data: URL or an image of Pillow, not {type(image).__name__}; convert it"
        )
    file = io.BytesIO()
    save(file, format="PNG")
    return file.getvalue()
