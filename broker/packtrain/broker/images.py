"""Images of a job: what is asked about them travels in the job, they themselves lie beside it under their hash.

    content   "Compare\\n\\nand\\n"        a turn's text, with the places at which its images stand
    images    [8: sha256 ..., 13: ...]   each by the hash of its bytes, see blobs.py

So a job stays small however large its images are, an image that is sent ten times is kept once, and a receipt can name
what was looked at. While a request is on its way to the broker its images carry their bytes; the record has none.
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

#: What a model takes.
Modality = Literal["text", "vision", "audio"]
#: Of one image, as it is sent. A photo of 12 megapixels has 3 to 8 MB.
MAX_IMAGE_BYTES = 16 * 1024 * 1024
#: Of all images of one job.
MAX_IMAGES_BYTES = 32 * 1024 * 1024
MAX_IMAGES = 16
#: Of one image. Decoded it takes 4 bytes for each.
MAX_PIXELS = 16 * 1024 * 1024
#: Pixels of a side. Fewer show nothing, and the code that scales images was not made for them.
MIN_SIDE, MAX_SIDE = 4, 16_384

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
_PART = 'an image is like {"type": "image_url", "image_url": {"url": "data:image/png;base64,..."}}'


def check_image(data: bytes) -> None:
    """Refuse what no model is shown: no image, or one out of bounds.

    Raises:
        ValueError: Why, with the remedy.
    """
    if len(data) > MAX_IMAGE_BYTES:
        raise ValueError(f"the image has {len(data)} bytes, at most {MAX_IMAGE_BYTES} are taken; scale it down")
    try:
        header = read_image_header(data)
    except NoImage as error:
        raise ValueError(f"the image cannot be read: {error}; send a PNG, JPEG, GIF or WebP file") from None
    size = f"{header.width} x {header.height} pixels"
    if min(header.width, header.height) < MIN_SIDE:
        raise ValueError(f"the image has {size}; each side needs at least {MIN_SIDE}")
    if max(header.width, header.height) > MAX_SIDE or header.width * header.height > MAX_PIXELS:
        raise ValueError(
            f"the image has {size}; at most {MAX_PIXELS} in all and {MAX_SIDE} on a side are taken, scale it down"
        )
    if header.is_animated:
        raise ValueError(f"the image is an animated {header.kind.upper()}; send one frame of it")


def _bytes(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return base64.b64decode(value, validate=True)
    except binascii.Error as error:
        raise ValueError(f"it is no base64 ({error}); encode the image's bytes") from None


class ImageRef(Input):
    """One image of a turn, by the hash of its bytes."""

    sha256: Sha256
    at: int = Field(ge=0, description="it stands before this character of the turn's content")
    data: Annotated[bytes, BeforeValidator(_bytes)] | None = Field(
        None, exclude=True, repr=False, description="its bytes, as base64; null: they are in the broker already"
    )

    @model_validator(mode="after")
    def _is_what_it_says(self) -> Self:
        if self.data is not None:
            check_image(self.data)
            if hashlib.sha256(self.data).hexdigest() != self.sha256:
                raise ValueError("sha256 is not the hash of data; give the one that it has")
        return self

    def with_data(self) -> dict[str, Any]:
        """Its fields as JSON, its bytes among them where they are known."""
        fields = self.model_dump(mode="json")
        return fields if self.data is None else {**fields, "data": base64.b64encode(self.data).decode()}


def image_of(data: bytes, at: int) -> dict[str, Any]:
    """The fields of an `ImageRef`."""
    return {"sha256": hashlib.sha256(data).hexdigest(), "at": at, "data": data}


def data_uri(data: bytes) -> str:
    """An image as a URL, which is how chats hold it."""
    try:
        kind = read_image_header(data).kind
    except NoImage:
        kind = "png"  # whoever reads it says what is wrong with it
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def from_data_uri(url: object) -> bytes:
    """The bytes of a `data:` URL.

    Raises:
        ValueError: It is another URL, or none.
    """
    if not isinstance(url, str):
        raise ValueError(_PART)
    if not url.startswith("data:"):
        scheme = url.partition(":")[0][:20]
        raise ValueError(
            f"an image_url of scheme {scheme!r} is not fetched here; send the image itself, as a data: URL"
        )
    head, comma, body = url.partition(",")
    if not comma or not head.endswith(";base64"):
        raise ValueError(f"a data: URL has to be of base64; {_PART}")
    if len(body) > MAX_IMAGE_BYTES * 4 // 3 + 4:
        raise ValueError(
            f"the image has over {MAX_IMAGE_BYTES} bytes, which are the most that are taken; scale it down"
        )
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"the data: URL is no base64 ({error}); encode the image's bytes") from None


def joined(content: object) -> tuple[object, list[dict[str, Any]]]:
    """Content parts as one text, a line each, as llama-server joins them, and the images at their places in it.

    Raises:
        ValueError: A part is of another kind, or has not its form.
    """
    if not isinstance(content, list | tuple):
        return content, []
    texts: list[str] = []
    images: list[dict[str, Any]] = []
    at = 0
    for part in content:
        text = ""
        match _kind(part):
            case "text":
                text = part.get("text")
                if not isinstance(text, str):
                    raise ValueError('a text part is like {"type": "text", "text": "Hi"}')
            case "image_url":
                data = _image(part)
                check_image(data)
                images.append(image_of(data, at))
            case kind:
                raise ValueError(f"a content part of type {kind!r} is not supported; send text and image_url parts")
        texts.append(text)
        at += len(text) + 1
    return "\n".join(texts), images


def _kind(part: object) -> Any:
    return part.get("type") if isinstance(part, Mapping) else type(part).__name__


def _image(part: Mapping[str, Any]) -> bytes:
    given = part.get("image_url")
    url = given.get("url") if isinstance(given, Mapping) else given
    return bytes(url) if isinstance(url, bytes | bytearray) else from_data_uri(url)


def split_at(content: str, images: Sequence[ImageRef]) -> list[str | ImageRef]:
    """A turn's text in pieces, and its images between them."""
    pieces: list[str | ImageRef] = []
    begin = 0
    for image in images:
        if text := content[begin : image.at]:
            pieces.append(text)
        pieces.append(image)
        begin = image.at
    return [*pieces, content[begin:]] if content[begin:] else pieces
