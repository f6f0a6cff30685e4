"""Pictures in files as RGB pixels of 8 bits: which files and pixel modes are read, and what becomes of each.

Every mode of Pillow is converted by a rule that stands here, or refused by its name: nothing is cut off or guessed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from torch import Tensor

from mobilenas.errors import DocumentError, MobileNASError

if TYPE_CHECKING:
    from PIL.Image import Image

ENDINGS = (".jpg", ".jpeg", ".jfif", ".png", ".ppm", ".pgm", ".pbm", ".pnm", ".bmp", ".tif", ".tiff", ".webp", ".gif")
"""Of files that are read; all others are counted."""
_FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")
"""What a file may be, whatever its ending: some of Pillow's other readers start programs."""
READING = (
    "EXIF orientation obeyed; transparency laid over white; 16-bit greys divided by 257; CMYK, YCbCr, HSV, LAB and palettes "
    "converted to RGB, colour profiles left out; the first picture of files that hold several"
)
"""How pictures in files become pixels, in words."""

_CONVERTED = frozenset({"1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV", "LAB", "LA", "La", "PA", "RGBA", "RGBa"})
_SIXTEEN_BITS = frozenset({"I;16", "I;16L", "I;16B", "I;16N"})
_OF_SIXTEEN_BITS = frozenset({"PNG", "PPM"})
"""Formats whose mode ``I`` holds 16 bits; that of others has a range which the file does not tell."""
_ORIENTATION, _BITS, _PHOTOMETRIC = 0x0112, 258, 262
"""Tags of EXIF and TIFF."""


class Header(NamedTuple):
    """What the first bytes of a file tell."""

    refused: str | None
    """Why it is not read."""
    holds_several: bool


@contextmanager
def opened(path: str) -> Iterator[Image]:
    """Open the picture in a file. Raises ``DocumentError`` naming the file if it is none, not whole, or far too large."""
    from PIL import Image

    try:
        with Image.open(path, formats=_FORMATS) as image:
            yield image
    except (MobileNASError, MemoryError):
        raise
    except Exception as error:  # whatever Pillow stumbles over is in the file
        raise DocumentError(f"{path}: not a whole image: {error}") from error


def header(path: str) -> Header:
    """Read what can be known of a file without decoding it."""
    try:
        with opened(path) as image:
            reason = _unreadable(image)
            return Header(f"{path}: {reason}" if reason else None, bool(getattr(image, "is_animated", False)))
    except DocumentError as error:
        return Header(str(error), False)


def read_rgb(path: str) -> Tensor:
    """Decode a file to ``(3, H, W)`` uint8, upright. Raises ``DocumentError`` naming the file and, if that is why, its mode."""
    from torchvision.transforms.v2.functional import pil_to_tensor

    with opened(path) as image:
        if reason := _unreadable(image):
            raise DocumentError(f"{path}: {reason}")
        image.load()
        orientation = image.getexif().get(_ORIENTATION, 1)
        pixels: Tensor = pil_to_tensor(_upright(_rgb(image), orientation))
        return pixels


def _unreadable(image: Image) -> str | None:
    """Return why a picture of this mode cannot be converted to 8 bits without a guess."""
    what_to_do = "convert it to 8 or 16 bits per channel"
    if image.mode in _SIXTEEN_BITS:
        tags = getattr(image, "tag_v2", {})
        if tags.get(_PHOTOMETRIC) == 0 or tags.get(_BITS, (16,)) != (16,):
            return f"pixel mode {image.mode} of TIFF with {tags.get(_BITS)} bits or white as zero: {what_to_do}"
        return None
    if image.mode == "F" or (image.mode == "I" and image.format not in _OF_SIXTEEN_BITS):
        kind = "floats" if image.mode == "F" else "32-bit integers"
        return f"pixel mode {image.mode} ({kind}) has a range that the file does not tell: {what_to_do}"
    if image.mode not in {*_CONVERTED, "I"}:
        return f"pixel mode {image.mode} is not read: {what_to_do}"
    return None


def _rgb(image: Image) -> Image:
    """Convert a loaded picture to mode RGB."""
    from PIL import Image

    if image.mode == "I" or image.mode in _SIXTEEN_BITS:
        values = np.asarray(image).astype(np.int64)
        bytes_ = ((values.clip(0, 65535) * 255 + 32767) // 65535).astype(np.uint8)
        key = image.info.get("transparency")
        if isinstance(key, int):  # PNG: this value is transparent
            bytes_[values == key] = 255
        return Image.fromarray(bytes_).convert("RGB")
    if image.mode == "LAB":
        return _rgb_from_lab(image)
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    canvas = Image.new("RGBA", rgba.size, "white")
    canvas.alpha_composite(rgba)
    return canvas.convert("RGB")


def _rgb_from_lab(image: Image) -> Image:
    """Convert CIE L*a*b* of the white point D50 to sRGB, which Pillow's ``convert`` does not do."""
    from PIL import ImageCms

    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    found = ImageCms.applyTransform(image, ImageCms.buildTransform(lab, srgb, "LAB", "RGB"))
    assert found is not None
    return found


def _upright(image: Image, orientation: int) -> Image:
    """Turn and mirror a picture as an EXIF ``orientation`` from 2 to 8 says; any other number changes nothing."""
    from PIL.Image import Transpose

    methods = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    method = methods.get(orientation)
    return image if method is None else image.transpose(method)
