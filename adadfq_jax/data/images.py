"""Decodes image files, and resizes images to a network's size."""

import contextlib
import functools
import io
import warnings
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from adadfq_jax.errors import DataError

# Formats that PIL lists but does not decode itself: containers and films of which it reads only the
# header, formats that it only writes, and formats for which it starts another program.
_NOT_DECODED = ("BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "PALM", "PDF", "WMF")

# Suffixes of image files, in lower case, with the dot.
SUFFIXES = frozenset(
    suffix for suffix, kind in Image.registered_extensions().items() if kind not in _NOT_DECODED
)
# Formats that are tried on a file's content, whatever its suffix is.
_FORMATS = [kind for kind in Image.ID if kind not in _NOT_DECODED]

_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0  # of TIFF


def decode(content: bytes, name: str) -> np.ndarray:
    """Decodes an image file to the pixels that an image viewer shows.

    16-bit grey is scaled to 8 bits; an EXIF orientation is applied; transparent pixels are put on
    white, with a warning, since the colours below them are arbitrary; of several frames or pages,
    the first is taken. Colour profiles are ignored.

    Args:
      content: the file's bytes, in any format that PIL decodes.
      name: the file's name, for the message.

    Returns:
      uint8 (H, W, 3).

    Raises:
      DataError: the file is damaged, or does not say what is black and what is white.
    """
    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            image.load()
            # Damaged metadata are ignored, since the pixels can still be right.
            with contextlib.suppress(Exception):
                ImageOps.exif_transpose(image, in_place=True)
            return np.asarray(_to_rgb(image))
    # Of any type, since PIL's decoders raise many kinds for a damaged file.
    except Exception as error:
        reason = str(error).rstrip(".")
        if "cannot identify image file" in reason:  # PIL's sentence names a buffer's address
            reason = "it is no image that PIL reads, or its beginning is damaged"
        raise DataError(f"{name} cannot be decoded: {reason or type(error).__name__}.") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    # PIL would cut 16-bit values off at 255 instead of scaling them.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return _from_16_bits(image).convert("RGB")
    if image.mode in ("I", "F"):
        kind = "32-bit or signed integers" if image.mode == "I" else "floating-point numbers"
        raise ValueError(
            f"its pixels are {kind}, of which the file does not say what is black and what is "
            "white; save it with 8 or 16 unsigned bits a channel"
        )
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    least_opaque, _ = image.getchannel("A").getextrema()
    if least_opaque < 255:
        _warn_of_transparency()
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _from_16_bits(image: Image.Image) -> Image.Image:
    """Scales an image of 16-bit grey (in TIFF, of up to 16 bits) to 8 bits."""
    values = np.asarray(image)
    tags = getattr(image, "tag_v2", {})  # of a TIFF file
    white = 2 ** tags.get(_BITS_PER_SAMPLE, (16,))[0] - 1
    brightest = int(values.max())
    if 0 < brightest <= 255:
        raise ValueError(
            f"it has {white.bit_length()} bits, but its largest value is {brightest} of {white}, "
            "which is black: such values are usually meant as 8-bit grey; save it with 8 bits"
        )
    grey = np.round(values * (255 / white)).astype(np.uint8)
    return Image.fromarray(255 - grey if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO else grey)


_WHOLE = 64  # side in pixels up to which networks are trained on whole images, without a crop


@functools.cache  # so that it warns once
def _warn_of_transparency() -> None:
    warnings.warn(
        "images with transparent pixels are put on white; the readers of torchvision and "
        "TensorFlow show the colours hidden below them instead.",
        stacklevel=2,
    )


def resized_side(network: Any) -> int:
    """Returns the pixels that the shorter side of an image gets before its centre is cut out.

    Args:
      network: what has an `image_size` and a `preparation`; see `fit`.
    """
    size = network.image_size
    usual = size if size <= _WHOLE else round(size * 256 / 224)
    return network.preparation.resize or usual


def preparation_in_words(network: Any) -> str:
    """Returns in words how image files become a network's images.

    Args:
      network: as in `resized_side`.
    """
    resized = {"center": "shorter side", "squash": "both sides"}[network.preparation.crop]
    side = network.image_size
    return f"{resized} {resized_side(network)}, of which the centre {side}x{side}"


def fit(image: np.ndarray, network: Any) -> np.ndarray:
    """Resizes and crops an image as a network was trained; of a network of one channel, to grey.

    The shorter side is resized (antialiased), then the centre is cut out; sizes and offsets are
    rounded as in torchvision. What the network's preparation leaves open: the shorter side becomes
    256 / 224 of the network's size, as is usual for ImageNet; for networks of up to 64 pixels,
    which are trained on whole images, it becomes that size itself. Without a size to resize to, an
    image that has the network's size already keeps its pixels.

    Args:
      image: uint8 (H, W, 3).
      network: what has `image_size`, `channels` and a `preparation`.

    Returns:
      uint8 (image_size, image_size, channels), of 1 or 3 channels.
    """
    picture, size, wanted = Image.fromarray(image), network.image_size, network.preparation
    if network.channels == 1:
        picture = picture.convert("L")
    if wanted.resize is not None or picture.size != (size, size):
        picture = _resized(picture, resized_side(network), wanted)
        top, left = (round((side - size) / 2) for side in (picture.height, picture.width))
        picture = picture.crop((left, top, left + size, top + size))
    return np.asarray(picture).reshape(size, size, network.channels)


def _resized(picture: Image.Image, shorter: int, wanted: Any) -> Image.Image:
    width, height = picture.size
    if wanted.crop == "squash":
        width = height = shorter
    elif height < width:
        height, width = shorter, int(shorter * width / height)
    else:
        height, width = int(shorter * height / width), shorter
    return picture.resize((width, height), Image.Resampling[wanted.interpolation.upper()])
