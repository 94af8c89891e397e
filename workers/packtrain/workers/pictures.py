"""From the bytes of an image to its pixels, with Pillow, in bounds.

The decoder is the one part that meets bytes of strangers in C. Pillow's is fuzzed all the time (OSS-Fuzz), which
llama.cpp's own, stb_image, says of itself that it is not for; and it runs in an instance, so a crash costs that alone.
Kind and size are known before from the header, so only that kind's decoder runs, and never on more pixels than allowed.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from packtrain.broker.errors import MediaUnreadable
from packtrain.broker.image_header import read_image_header
from packtrain.broker.images import check_image

Picture = np.ndarray[Any, np.dtype[np.uint8]]

Image.MAX_IMAGE_PIXELS = None  # our own bound is lower, and an error; Pillow's is a warning first


def decode(data: bytes) -> Picture:
    """The pixels, (height, width, 3) RGB: upright as its EXIF says, what is transparent on white. Blocks.

    Raises:
        MediaUnreadable: It is out of bounds, or not what its header says.
    """
    try:
        check_image(data)
        header = read_image_header(data)
        with Image.open(io.BytesIO(data), formats=[header.kind.upper()]) as image:
            if image.size != (header.width, header.height):
                raise ValueError(f"its header says {header.width} x {header.height}, its decoder {image.size}")
            # A JPEG of a phone may hold a second picture, which is for other eyes.
            if header.kind != "jpeg" and getattr(image, "n_frames", 1) > 1:
                raise ValueError("it has several frames")
            image.load()
            return np.asarray(_on_white(_upright(image)), np.uint8)
    except Exception as error:  # decoders raise whatever they like
        raise MediaUnreadable(
            f"an image of the chat cannot be read ({type(error).__name__}: {error}); save it again as PNG or JPEG"
        ) from error


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # EXIF that is damaged says nothing, and the pixels are well
        return image


def _on_white(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image.convert("RGB")
    whole = image.convert("RGBA")
    ground = Image.new("RGBA", whole.size, "white")
    ground.alpha_composite(whole)
    return ground.convert("RGB")
