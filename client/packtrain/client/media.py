"""Images and sounds as Python programs have them: paths, bytes, data: URLs, Pillow's; each becomes bytes of a file.

Only here a text may be a path. What comes over HTTP never passes here: nobody can ask a gateway for its files.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from packtrain.broker.errors import InvalidParameter
from packtrain.broker.images import MAX_IMAGE_BYTES, from_data_uri
from packtrain.broker.media import Kind, check_media
from packtrain.broker.sounds import MAX_SOUND_BYTES

#: The option that has them, and the most bytes of a file.
_FIELD: Mapping[Kind, str] = {"image": "images", "audio": "audio"}
_MOST: Mapping[Kind, int] = {"image": MAX_IMAGE_BYTES, "audio": MAX_SOUND_BYTES}


def read_media(kind: Kind, given: object) -> bytes:
    """The bytes of an image or a sound.

    Args:
        given: A path (`str` or `Path`), the bytes of a file, or, of images, a data: URL or an image of Pillow.

    Raises:
        InvalidParameter: It is none of these, cannot be read, or is not of this kind.
    """
    field = _FIELD[kind]
    try:
        data = _read(kind, given)
        check_media(kind, data)
    except OSError as error:
        raise InvalidParameter(f"{given!r:.200} cannot be read ({error.strerror or error})", field=field) from error
    except ValueError as error:
        shown = f"{given!r:.80}: " if isinstance(given, str | os.PathLike) else ""
        raise InvalidParameter(f"{shown}{error}", field=field) from error
    return data


def with_media(turns: Sequence[Mapping[str, Any]], images: object, audio: object) -> list[dict[str, Any]]:
    """A chat with these images, and then these sounds, before the text of its last turn.

    Args:
        images, audio: One, a list of them, or None.

    Raises:
        InvalidParameter
    """
    *before, last = [dict(turn) for turn in turns]
    text = last.get("content")
    shown = [_image_part(image) for image in _many(images)]
    played = [_sound_part(sound) for sound in _many(audio)]
    said = [{"type": "text", "text": text}] if isinstance(text, str) else list(text or ())
    return [*before, {**last, "content": [*shown, *played, *said]}]


def read_parts(turn: Mapping[str, Any]) -> dict[str, Any]:
    """A turn whose images and sounds are bytes, or texts as HTTP has them, whatever a program has put there."""
    content = turn.get("content")
    if not isinstance(content, list | tuple):
        return dict(turn)
    return {**turn, "content": [_part(part) for part in content]}


def _part(part: object) -> object:
    if not isinstance(part, Mapping):
        return part
    # A text is a URL there, or base64, as everywhere; a path has to be a Path.
    if part.get("type") == "image_url":
        given = part.get("image_url")
        url = given.get("url") if isinstance(given, Mapping) else given
        return part if isinstance(url, str | None) else _image_part(url)
    if part.get("type") == "input_audio":
        given = part.get("input_audio")
        data = given.get("data") if isinstance(given, Mapping) else given
        return part if isinstance(data, str | None) else _sound_part(data)
    return part


def _many(given: object) -> Sequence[object]:
    return () if given is None else given if isinstance(given, list | tuple) else (given,)


def _image_part(image: object) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": read_media("image", image)}}


def _sound_part(sound: object) -> dict[str, Any]:
    return {"type": "input_audio", "input_audio": {"data": read_media("audio", sound)}}


def _read(kind: Kind, given: object) -> bytes:
    if isinstance(given, bytes | bytearray | memoryview):
        return bytes(given)
    if kind == "image" and isinstance(given, str) and given.startswith("data:"):
        return from_data_uri(given)
    if isinstance(given, str | os.PathLike):
        path = Path(given)
        if (size := path.stat().st_size) > _MOST[kind]:
            raise ValueError(f"it has {size} bytes, at most {_MOST[kind]} are taken; make it smaller")
        return path.read_bytes()
    if kind == "audio":
        raise ValueError(f"a sound is a path or the bytes of a file, not {type(given).__name__}; convert it")
    save: Any = getattr(given, "save", None)
    if save is None:
        raise ValueError(
            f"an image is a path, bytes, a data: URL or an image of Pillow, not {type(given).__name__}; convert it"
        )
    file = io.BytesIO()
    save(file, format="PNG")
    return file.getvalue()
