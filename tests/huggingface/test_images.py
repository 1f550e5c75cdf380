"""Pictures from strangers: whatever the bytes, a picture or a refusal in words."""

import io
import struct
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mlserve.errors import InvalidInputError
from mlserve.huggingface._images import FORMATS, as_png, decode_image


def picture(width: int = 9, height: int = 6, mode: str = "RGB") -> Image.Image:
    return Image.linear_gradient("L").resize((width, height)).convert(mode)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_head(width: int, height: int) -> bytes:
    """A PNG file of a few bytes that says it is as large as asked for."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = b"IDAT" + zlib.compress(b"")
    chunks = [
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        for chunk in (head, body, b"IEND")
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize("kind", FORMATS)
def test_each_format_is_decoded(kind: str) -> None:
    image = decode_image(encoded(picture(), kind), param="image")

    assert (image.mode, image.size) == ("RGB", (9, 6))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I;16"])
def test_every_kind_of_png_becomes_rgb(mode: str) -> None:
    image = decode_image(as_png(picture().convert("L").convert(mode)), param="image")

    assert image.mode == "RGB"


def test_a_picture_is_turned_as_its_camera_was_held() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90°

    image = decode_image(encoded(picture(9, 6), "JPEG", exif=exif), param="image")

    assert image.size == (6, 9)


@pytest.mark.parametrize("size", [(7_100, 7_100), (20_000, 20_000), (60_000, 60_000)])
def test_a_bomb_is_refused_by_its_head(size: tuple[int, int]) -> None:
    with pytest.raises(InvalidInputError) as caught:
        decode_image(png_head(*size), param="image")

    assert caught.value.param == "image"


def test_a_picture_larger_than_asked_for_is_refused_in_words() -> None:
    content = as_png(picture(10, 10))

    assert decode_image(content, max_pixels=100, param="image").size == (10, 10)
    with pytest.raises(InvalidInputError, match="10 × 10 pixels; at most 99"):
        decode_image(content, max_pixels=99, param="image")


@pytest.mark.parametrize("kind", ["EPS", "TIFF", "ICO", "PPM", "PDF"])
def test_other_formats_are_refused(kind: str) -> None:
    with pytest.raises(InvalidInputError, match="no picture that can be read"):
        decode_image(encoded(picture(16, 16), kind), param="image")


@given(content=st.binary(max_size=64))
def test_bytes_that_are_no_picture_are_refused(content: bytes) -> None:
    with pytest.raises(InvalidInputError):
        decode_image(content, param="image")


@settings(deadline=None)
@given(kind=st.sampled_from(FORMATS), data=st.data())
def test_a_damaged_picture_is_decoded_or_refused(kind: str, data: st.DataObject) -> None:
    content = bytearray(encoded(picture(), kind))
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(content)))

    try:
        image = decode_image(bytes(content[:cut]), max_pixels=10_000, param="image")
    except InvalidInputError:
        return
    assert image.mode == "RGB"
