"""From the bytes of an image file to upright 8-bit RGB, and to PNG. Files are not trusted."""

from __future__ import annotations

import io
import struct
import warnings
import zlib

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from trainers.data.errors import UserError

SUFFIXES = {
    "PNG": ".png",
    "JPEG": ".jpg",
    "WEBP": ".webp",
    "BMP": ".bmp",
    "GIF": ".gif",
    "TIFF": ".tif",
    "PPM": ".ppm",
}
"""Formats that are read, by Pillow's name. Formats that run a program (EPS) are not among them."""

# What Pillow's decoders raise on damaged bytes; MemoryError comes from absurd sizes in a header.
DECODE_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)


def decode(data: bytes, name: str, max_pixels: int) -> tuple[Image.Image, str]:
    """The decoded image (first frame, `to_rgb`) and the suffix of its format.

    `name` starts every message. Raises `UserError` for bytes that are no image, are damaged or cut
    off, or whose header claims more than `max_pixels`, which is checked before pixels are decoded.
    """
    try:
        with warnings.catch_warnings():
            # Pillow warns of sizes (`max_pixels` decides here) and of odd metadata.
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=tuple(SUFFIXES)) as image:
                check_size(image, name, max_pixels)
                # Pillow calls a JPEG with a second frame MPO: the only format not in the table.
                return to_rgb(image), SUFFIXES.get(str(image.format), ".jpg")
    except UserError:
        raise
    except Image.DecompressionBombError as error:
        raise UserError(f"{name}: more than {max_pixels} pixels; shrink the image") from error
    except UnidentifiedImageError as error:
        kinds = ", ".join(SUFFIXES)
        raise UserError(f"{name}: not an image that can be read; use one of {kinds}") from error
    except DECODE_ERRORS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{name}: damaged or cut off ({reason}); replace the file") from error


def check_size(image: Image.Image, name: str, max_pixels: int) -> None:
    """Raises `UserError` unless the image has 1 to `max_pixels` pixels."""
    width, height = image.size
    if not 0 < width * height <= max_pixels:
        raise UserError(
            f"{name}: {width}x{height} pixels, allowed are 1 to {max_pixels}; shrink the image"
        )


def to_rgb(image: Image.Image) -> Image.Image:
    """Upright 8-bit RGB: EXIF orientation applied, transparency over white, 16 bits scaled to 8.

    Limiting case: an RGB image without orientation keeps every pixel.
    """
    upright = ImageOps.exif_transpose(image)
    if upright.mode == "RGB" and "transparency" not in upright.info:
        return upright
    if upright.mode.startswith(("I", "F")):
        return _scaled_grey(upright).convert("RGB")
    if upright.has_transparency_data:
        white = Image.new("RGBA", upright.size, "white")
        return Image.alpha_composite(white, upright.convert("RGBA")).convert("RGB")
    return upright.convert("RGB")


def _scaled_grey(image: Image.Image) -> Image.Image:
    """Grey of more than 8 bits; Pillow's own conversion would clip it at 255."""
    values = np.nan_to_num(np.asarray(image, dtype=np.float64), posinf=0.0, neginf=0.0)
    top = float(values.max())
    if image.mode.startswith("I;16"):
        top = 65535.0
    else:
        # 32-bit files do not say what white is: the smallest usual range that holds the values.
        ranges = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
        top = next((white for white in ranges if top <= white), top)
    scaled = np.clip(values / top * 255.0, 0.0, 255.0)
    return Image.fromarray(scaled.round().astype(np.uint8))


def encode_png(image: Image.Image) -> bytes:
    """An RGB image as PNG, without filters and lightly compressed.

    Four times faster than Pillow's writer on the small images of the drawn world, and the same
    bytes for the same pixels whatever the Pillow version. Format: W3C PNG specification, 5 and 11.
    """
    width, height = image.size
    pixels, stride = image.tobytes(), 3 * width
    rows = b"".join(b"\0" + pixels[i : i + stride] for i in range(0, len(pixels), stride))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows, 1)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )
