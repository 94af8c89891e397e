"""Images of a job: which are taken, and how they are written as URLs. What becomes of them: media.py."""

from __future__ import annotations

import base64
import binascii

from packtrain.broker.image_header import NoImage, read_image_header

#: Of one image, as it is sent. A photo of 12 megapixels has 3 to 8 MB.
MAX_IMAGE_BYTES = 16 * 1024 * 1024
#: Of one image. Decoded it takes 4 bytes for each.
MAX_PIXELS = 16 * 1024 * 1024
#: Pixels of a side. Fewer show nothing, and the code that scales images was not made for them.
MIN_SIDE, MAX_SIDE = 4, 16_384

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
