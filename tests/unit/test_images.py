"""Headers of images, and what is taken of them."""

from __future__ import annotations

import base64
import io
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from packtrain.broker.errors import InvalidParameter, MediaUnreadable, MediaUnsupported
from packtrain.broker.image_header import ImageHeader, NoImage, read_image_header
from packtrain.broker.images import check_image
from packtrain.broker.job_spec import JobSpec, parse_spec
from packtrain.broker.media import MAX_MEDIA
from packtrain.broker.model_info import ModelInfo
from packtrain.broker.prefixes import prefix_hashes
from packtrain.broker.senses import check_senses
from packtrain.client.request import build_spec
from packtrain.workers.pictures import decode
from tests.support.pictures import asked, hostile, part, png

pytestmark = pytest.mark.unit


def saved(kind: str, size: tuple[int, int] = (37, 21), mode: str = "RGB", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.new(mode, size, options.pop("colour", None) or "red").save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("JPEG", {}),
        ("JPEG", {"progressive": True, "comment": b"\xff\xd8" * 300}),
        ("GIF", {}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("WEBP", {"exif": b"Exif\0\0" + bytes(20)}),
    ],
)
def test_kind_and_size_are_read_as_pillow_reads_them(kind: str, options: dict[str, Any]) -> None:
    data = saved(kind, **options)

    assert read_image_header(data) == ImageHeader(kind.lower(), 37, 21)  # type: ignore[arg-type]
    assert decode(data).shape == (21, 37, 3)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_an_animated_image_is_refused(kind: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    file = io.BytesIO()
    frames[0].save(file, kind, save_all=True, append_images=frames[1:], loop=0)

    with pytest.raises(ValueError, match="animated"):
        check_image(file.getvalue())


@given(
    st.binary(max_size=200),
    st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"RIFF\0\0\0\0WEBP"]),
)
def test_whatever_the_bytes_are_there_is_a_header_or_a_reason(data: bytes, begin: bytes) -> None:
    with suppress(NoImage):
        assert read_image_header(begin + data).width >= 0


@pytest.mark.parametrize(("what", "data"), list(hostile()), ids=lambda value: value if isinstance(value, str) else "")
def test_no_hostile_image_is_decoded(what: str, data: bytes) -> None:
    with pytest.raises(MediaUnreadable, match="cannot be read"):
        decode(data)


def test_a_png_with_a_page_behind_it_is_its_pixels_alone() -> None:
    data = png(16, 16, colour=(1, 2, 3), tail=b"<script>alert(1)</script>")

    assert (decode(data) == (1, 2, 3)).all()


def test_what_is_transparent_lies_on_white_and_what_lies_on_its_side_is_turned() -> None:
    clear = saved("PNG", mode="RGBA", colour=(255, 0, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn it right
    turned = saved("JPEG", exif=exif)

    assert (decode(clear) == 255).all()
    assert decode(turned).shape == (37, 21, 3)


def test_a_jpeg_whose_frame_lies_about_its_size_is_not_believed() -> None:
    data = bytearray(saved("JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", 30_000, 30_000)

    with pytest.raises(MediaUnreadable, match="30000 x 30000"):
        decode(bytes(data))


# Jobs


def chat(*content: dict[str, Any], **fields: Any) -> JobSpec:
    return parse_spec({"model": "m", "messages": [{"role": "user", "content": list(content)}], **fields})


def test_parts_are_joined_by_lines_and_images_keep_their_places() -> None:
    spec = chat({"type": "text", "text": "One:"}, part(png(8, 8)), part(png(9, 9)), {"type": "text", "text": "Two?"})

    assert spec.messages[0].content == "One:\n\n\nTwo?"
    assert [image.at for image in spec.media] == [5, 6]


def test_a_record_has_hashes_and_no_bytes_and_reads_as_the_same_request() -> None:
    spec = chat(part(png(8, 8)))
    record = JobSpec.model_validate_json(spec.to_json())
    sent = JobSpec.model_validate_json(spec.to_json(with_media=True))

    assert base64.b64encode(png(8, 8)).decode() not in spec.to_json()
    assert record.media[0].data is None
    assert record.digest() == spec.digest()
    assert sent.media[0].data == png(8, 8)


def test_bytes_that_are_not_what_their_hash_says_are_refused() -> None:
    image = {"sha256": "0" * 64, "at": 0, "data": base64.b64encode(png(8, 8)).decode()}

    with pytest.raises(InvalidParameter, match="not the hash"):
        parse_spec({"model": "m", "messages": [{"role": "user", "content": "?", "media": [image]}]})


@pytest.mark.parametrize("role", ["system", "assistant", "developer"])
def test_only_users_and_tools_show_images(role: str) -> None:
    with pytest.raises(InvalidParameter, match="has no images"):
        parse_spec({"model": "m", "messages": [{"role": role, "content": [part(png(8, 8))]}]})


def test_images_are_counted_and_not_scored() -> None:
    with pytest.raises(InvalidParameter, match="17"):
        parse_spec({"model": "m", "messages": asked(png(8, 8), "?") * (MAX_MEDIA + 1)})
    with pytest.raises(InvalidParameter, match="prompt_logprobs"):
        chat(part(png(8, 8)), params={"prompt_logprobs": 1})


def test_jobs_begin_alike_only_with_the_same_image() -> None:
    question = {"type": "text", "text": "x" * 300}
    first, again, other = (chat(part(png(side, 8)), question) for side in (8, 8, 9))

    assert prefix_hashes(first) == prefix_hashes(again) != prefix_hashes(other)


def test_a_blind_model_is_told_from_one_that_sees() -> None:
    blind, seeing = ModelInfo(id="m"), ModelInfo(id="eyes", modalities=("text", "vision"))
    alias = ModelInfo(id="alias", alias_of="eyes")

    with pytest.raises(MediaUnsupported, match=r"'m' takes text alone.*eyes"):
        check_senses(chat(part(png(8, 8))), [blind, seeing])
    check_senses(chat(part(png(8, 8))), [])
    check_senses(chat({"type": "text", "text": "?"}), [blind])
    check_senses(chat(part(png(8, 8)), model="eyes"), [blind, seeing])
    check_senses(chat(part(png(8, 8)), model="alias"), [alias, seeing])


# Python


def built(prompt: Any = "?", **options: Any) -> JobSpec:
    return build_spec("m", prompt, raw=False, stream=False, expires_in=None, options=options)


def test_python_takes_paths_bytes_urls_and_pillow(tmp_path: Path) -> None:
    data, path = png(8, 8), tmp_path / "a.png"
    path.write_bytes(data)
    url = part(data)["image_url"]["url"]
    hashes = {built(images=image).media[0].sha256 for image in (data, path, str(path), [url], (data,))}

    assert len(hashes) == 1
    drawn = built(images=Image.fromarray(np.full((8, 8, 3), 9, np.uint8))).media[0]
    assert drawn.data is not None
    assert (decode(drawn.data) == 9).all()
    assert built([{"role": "user", "content": [{"type": "image_url", "image_url": path}]}]).media[0].data == data


@pytest.mark.parametrize(
    ("image", "said"),
    [("/nowhere.png", "cannot be read"), (5, "not int"), (b"x", "none of PNG"), (__file__, "none of")],
)
def test_python_says_what_is_wrong_with_an_image(image: object, said: str) -> None:
    with pytest.raises(InvalidParameter, match=said):
        built(images=image)


def test_a_path_in_a_text_is_no_path() -> None:
    with pytest.raises(InvalidParameter, match="not fetched"):
        built([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "/etc/passwd"}}]}])


def test_images_are_shown_in_chats() -> None:
    with pytest.raises(InvalidParameter, match="belong to chats"):
        build_spec("m", "?", raw=True, stream=False, expires_in=None, options={"images": png(8, 8)})
