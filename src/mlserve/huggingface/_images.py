"""Pictures that strangers send: decoded within bounds, or refused."""

import io

from PIL import Image, ImageOps

from mlserve.errors import InvalidInputError

__all__ = ["FORMATS", "MAX_PIXELS", "as_png", "decode_image"]

# Others stay out: some are read by programs that Pillow starts (EPS), and all by code in C.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
MAX_PIXELS = 50_000_000
"""The largest picture that is decoded by default, in pixels; it takes 150 MB of memory then."""


def decode_image(content: bytes, *, max_pixels: int = MAX_PIXELS, param: str) -> Image.Image:
    """
    Decode a picture, turned as its camera was held. Of an animation the first frame.

    Args:
        content: A file in one of `FORMATS`.
        max_pixels: Larger pictures are refused by what their head says, before they take memory.
        param: What the picture is called in the request.

    Returns:
        A picture in mode RGB.

    Raises:
        InvalidInputError: If it is no such file, is damaged or too large.
    """
    unreadable = InvalidInputError(
        f"`{param}` is no picture that can be read; send one of {', '.join(FORMATS)}.", param=param
    )
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise InvalidInputError(
                    f"`{param}` has {width} × {height} pixels; at most {max_pixels} are taken.",
                    param=param,
                )
            return ImageOps.exif_transpose(image).convert("RGB")
    except (InvalidInputError, MemoryError):
        raise
    except Exception as exc:
        raise unreadable from exc


def as_png(image: Image.Image) -> bytes:
    """Encode a picture as a PNG file."""
    image.save(buffer := io.BytesIO(), "PNG")
    return buffer.getvalue()
