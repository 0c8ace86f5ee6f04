"""From an image file to the pixels that a network sees."""

import io

import numpy as np
from PIL import Image

from adadfq_jax.errors import DataError


def decode(content: bytes, name: str) -> np.ndarray:
    """Decodes an image file.

    Args:
      content: the file's bytes, in any format that PIL reads; grey and palette images become RGB.
      name: whose they are, for the message.

    Returns:
      uint8 (H, W, 3).

    Raises:
      DataError: the file is damaged.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            return np.asarray(image.convert("RGB"))
    # Any: a damaged file can make the decoder raise whatever Python can.
    except Exception as error:
        reason = str(error).rstrip(".")
        if "cannot identify image file" in reason:  # names the buffer's address
            reason = "it is no image, or its beginning is damaged"
        raise DataError(f"{name} cannot be decoded: {reason or type(error).__name__}.") from error


def fit(image: np.ndarray, size: int) -> np.ndarray:
    """Brings an image to a network's size, as is usual for ImageNet.

    The shorter side is resized to 256 / 224 of the network's size (bilinear, antialiased), then
    the centre is cut out; sizes and offsets are rounded as torchvision rounds them. An image that
    already has the network's size is taken as it is: CIFAR's always, ImageNet's when somebody has
    cropped them before.

    Args:
      image: uint8 (H, W, 3).
      size: side of the network's images in pixels.

    Returns:
      uint8 (size, size, 3).
    """
    height, width, _ = image.shape
    if height == width == size:
        return image
    shorter = round(size * 256 / 224)
    if height < width:
        height, width = shorter, int(shorter * width / height)
    else:
        height, width = int(shorter * height / width), shorter
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    top, left = round((height - size) / 2), round((width - size) / 2)
    return np.asarray(resized.crop((left, top, left + size, top + size)))
