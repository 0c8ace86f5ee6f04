"""What an exported file says of its input, so that a program can make one from a picture.

Under `input` of a file's description stand: layout (`NCHW` or `NHWC`, a batch of any size first),
type, channels (their order), height and width in pixels, resize (of the shorter side, or of both)
and crop, values (how pixels from 0 to 255 become what the network takes), mean and std by channel.
Under `class_names` stand the names of the classes in the order of the logits, where they are known.

Resize and crop are those with which this package measures (`data/images.py`); a file in which they
differ from those of the teacher's training may be less accurate than it could be.
"""

from typing import Any

from adadfq_jax.data.images import preparation_in_words, resized_side
from adadfq_jax.errors import ExportError

_NORMALISED = "(pixels / 255 - mean) / std"
_RAW = "pixels"
_CHANNELS = {1: "grey", 3: "RGB"}
# By `Preparation.crop`, what is resized before the centre is cut out.
_RESIZED = {"center": "shorter_side", "squash": "both_sides"}


def describe_input(network: Any, layout: str, raw_pixels: bool = False) -> dict[str, Any]:
    """Returns the entries `input` and, where they are known, `class_names` of a description.

    Args:
      network: what is exported, with `image_size`, `mean`, `std`, `preparation` and `class_names`.
      layout: `NCHW` or `NHWC`.
      raw_pixels: whether the file normalises pixels itself.
    """
    side = network.image_size
    described = {
        "input": {
            "layout": layout,
            "type": "float32",
            "channels": _channels(network),
            "height": side,
            "width": side,
            "resize": {
                _RESIZED[network.preparation.crop]: resized_side(network),
                "filter": f"{network.preparation.interpolation}, antialiased",
            },
            "crop": "centre",
            "values": _RAW if raw_pixels else _NORMALISED,
            "mean": list(network.mean),
            "std": list(network.std),
        }
    }
    if network.class_names is not None:
        described["class_names"] = list(network.class_names)
    return described


def _channels(network: Any) -> str:
    count = len(network.mean)
    return _CHANNELS.get(count, f"{count} channels")


def read_names(described: dict[str, Any]) -> tuple[str, ...] | None:
    """Returns the names of the classes that a description tells; None where it tells none."""
    names = described.get("class_names")
    return None if names is None else tuple(names)


def input_shape(described: dict[str, Any]) -> tuple[int, int, int] | None:
    """Returns the shape of one input that a description tells; None where it tells none."""
    if (said := described.get("input")) is None:
        return None
    sizes = {"C": len(said["mean"]), "H": said["height"], "W": said["width"]}
    return tuple(sizes[axis] for axis in said["layout"][1:])


def check_input(name: str, described: dict[str, Any], expected: dict[str, Any]) -> None:
    """Checks that a file asks for the input that this package gives it.

    Args:
      name: the file's, for messages.
      described: what the file says of itself; files of earlier versions say nothing of `input`.
      expected: of `describe_input`, for the network that the file holds.

    Raises:
      ExportError: it asks for another input, or has another number of names than of classes.
    """
    for entry, given in expected["input"].items():
        asked = described.get("input", {}).get(entry, given)
        if asked != given:
            raise ExportError(
                f"{name} asks for an input whose {entry} is {asked!r}, but what is given has "
                f"{given!r}."
            )
    names = described.get("class_names")
    if names is not None and len(names) != described["classes"]:
        raise ExportError(f"{name} has {described['classes']} classes, but {len(names)} names.")


def input_in_words(network: Any) -> str:
    """Returns in one line what a network takes.

    Args:
      network: a network or an exported one, with `image_size`, `mean` and `std`.
    """
    mean, std = (
        ", ".join(f"{value:.3g}" for value in part) for part in (network.mean, network.std)
    )
    return f"{_channels(network)}, {preparation_in_words(network)}; mean {mean}; std {std}"
