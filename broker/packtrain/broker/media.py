"""Media: images and sounds of a job. What is asked about them travels in the job, they lie beside it under their hash.

    content   "Compare\\n\\nand\\n"        a turn's text, with the places at which its media stand
    media     [8: sha256 ..., 13: ...]   each by the hash of its bytes, see blobs.py

So a job stays small however large its media are, an image that is sent ten times is kept once, and a receipt can name
what was looked at. While a request is on its way to the broker its media carry their bytes; the record has none.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, StringConstraints, model_validator

from packtrain.broker.fields import Input
from packtrain.broker.image_header import NoImage, read_image_header
from packtrain.broker.images import MAX_IMAGE_BYTES, check_image, from_data_uri
from packtrain.broker.sounds import check_sound, sound_of_part

Kind = Literal["image", "audio"]
#: What a model takes.
Modality = Literal["text", "vision", "audio"]
#: Which of these a kind needs.
MODALITY_OF: Mapping[Kind, Modality] = {"image": "vision", "audio": "audio"}
#: Of one job, all kinds together.
MAX_MEDIA = 16
MAX_MEDIA_BYTES = 2 * MAX_IMAGE_BYTES

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


def check_media(kind: Kind, data: bytes) -> None:
    """Refuse what no model is given: what is not of this kind, or out of bounds.

    Raises:
        ValueError: Why, with the remedy.
    """
    if kind == "image":
        check_image(data)
    else:
        check_sound(data)


def kind_of(data: bytes) -> Kind:
    """What bytes are, by their first ones; what is neither counts as a sound."""
    try:
        read_image_header(data)
    except NoImage as problem:
        return "image" if problem.is_begun else "audio"
    return "image"


def _bytes(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return base64.b64decode(value, validate=True)
    except binascii.Error as error:
        raise ValueError(f"it is no base64 ({error}); encode the file's bytes") from None


class MediaRef(Input):
    """One image or sound of a turn, by the hash of its bytes."""

    sha256: Sha256
    at: int = Field(ge=0, description="it stands before this character of the turn's content")
    kind: Kind = "image"
    data: Annotated[bytes, BeforeValidator(_bytes)] | None = Field(
        None, exclude=True, repr=False, description="its bytes, as base64; null: they are in the broker already"
    )

    @model_validator(mode="after")
    def _is_what_it_says(self) -> Self:
        if self.data is not None:
            check_media(self.kind, self.data)
            if hashlib.sha256(self.data).hexdigest() != self.sha256:
                raise ValueError("sha256 is not the hash of data; give the one that it has")
        return self

    def with_data(self) -> dict[str, Any]:
        """Its fields as JSON, its bytes among them where they are known."""
        fields = self.model_dump(mode="json")
        return fields if self.data is None else {**fields, "data": base64.b64encode(self.data).decode()}


def ref_of(data: bytes, at: int, kind: Kind = "image") -> dict[str, Any]:
    """The fields of a `MediaRef`."""
    return {"sha256": hashlib.sha256(data).hexdigest(), "at": at, "kind": kind, "data": data}


def joined(content: object) -> tuple[object, list[dict[str, Any]]]:
    """Content parts as one text, a line each, as llama-server joins them, and the media at their places in it.

    Raises:
        ValueError: A part is of another kind, or has not its form.
    """
    if not isinstance(content, list | tuple):
        return content, []
    texts: list[str] = []
    media: list[dict[str, Any]] = []
    at = 0
    for part in content:
        text = ""
        match _type(part):
            case "text":
                text = part.get("text")
                if not isinstance(text, str):
                    raise ValueError('a text part is like {"type": "text", "text": "Hi"}')
            case "image_url":
                media.append(_checked("image", _image(part), at))
            case "input_audio":
                media.append(_checked("audio", sound_of_part(part), at))
            case other:
                raise ValueError(
                    f"a content part of type {other!r} is not supported; send text, image_url and input_audio parts"
                )
        texts.append(text)
        at += len(text) + 1
    return "\n".join(texts), media


def _checked(kind: Kind, data: bytes, at: int) -> dict[str, Any]:
    check_media(kind, data)
    return ref_of(data, at, kind)


def _type(part: object) -> Any:
    return part.get("type") if isinstance(part, Mapping) else type(part).__name__


def _image(part: Mapping[str, Any]) -> bytes:
    given = part.get("image_url")
    url = given.get("url") if isinstance(given, Mapping) else given
    return bytes(url) if isinstance(url, bytes | bytearray) else from_data_uri(url)


def split_at(content: str, media: Sequence[MediaRef]) -> list[str | MediaRef]:
    """A turn's text in pieces, and its media between them."""
    pieces: list[str | MediaRef] = []
    begin = 0
    for ref in media:
        if text := content[begin : ref.at]:
            pieces.append(text)
        pieces.append(ref)
        begin = ref.at
    return [*pieces, content[begin:]] if content[begin:] else pieces


def unjoined(content: str, media: Sequence[MediaRef]) -> list[str | MediaRef]:
    """Parts that `joined` makes this of: the pieces without the line breaks by which it joins them.

    >>> unjoined("a\\n\\nb", [MediaRef(sha256="0" * 64, at=2)])[::2]
    ['a', 'b']
    """
    pieces = split_at(content, media)
    parts: list[str | MediaRef] = []
    for number, piece in enumerate(pieces):
        if isinstance(piece, str):
            # Between two media a single break joins just these.
            text = piece.removeprefix("\n") if number else piece
            text = text.removesuffix("\n") if number + 1 < len(pieces) else text
            if text:
                parts.append(text)
        else:
            parts.append(piece)
    return parts
