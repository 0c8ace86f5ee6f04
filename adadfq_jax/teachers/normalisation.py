"""How images are normalised: presets, and what people write on a command line."""

import math
import numbers
import re
from collections.abc import Sequence
from typing import Any

from adadfq_jax.errors import ConfigError, TeacherError, nearest

# (mean, std) per channel of pixels in [0, 1].
NORMALISATIONS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    # The standard deviations that pytorchcv's CIFAR teachers were trained with.
    "cifar10-pytorchcv": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
}

# Pixels in [0, 1] have a mean in [0, 1], and a standard deviation of at most 0.5; 1 stands for
# pixels that are not scaled, 1/255 for those of a network on 0 to 255. A hundredth is for rounding.
MOST_CHANNELS = 256
_LEAST_STD = 0.99 / 255
_IN_UNITS = {"mean": lambda x: 0 <= x <= 1, "std": lambda x: _LEAST_STD <= x <= 1}
# Below it, in units of 0 to 255, no images have a standard deviation: 4.37 is 1 / 0.229 instead.
_LEAST_IN_255 = 5.0
_CLOSE = 0.005


def parse_normalisation(
    mean: str | None, std: str | None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Reads a normalisation, both parts of it or neither.

    Args:
      mean, std: numbers with commas between, one for each channel, or a name of
        `NORMALISATIONS`; a name given for one of them stands for both. Empty or None: not given.

    Returns:
      (mean, std), both empty where neither is given.

    Raises:
      ConfigError: another form, an unknown name, or one without the other.
    """
    named = next((text for text in (mean, std) if text in NORMALISATIONS), None)
    mean, std = mean or named, std or named
    if not mean and not std:
        return (), ()
    means, stds = mean and _parse("mean", 0, mean), std and _parse("std", 1, std)
    if not means or not stds:
        given, missing = ("mean", "std") if mean else ("std", "mean")
        raise ConfigError(f"--{given} is given without --{missing}.")
    if not all(value > 0 for value in stds):
        raise ConfigError(f"--std must be positive, not {std}.")
    return means, stds


def is_mean(value: Any) -> bool:
    """Tells whether a value is finite numbers, one for each channel."""
    return (
        isinstance(value, list | tuple)
        and 1 <= len(value) <= MOST_CHANNELS
        and all(
            isinstance(number, numbers.Real)
            and not isinstance(number, bool)
            and math.isfinite(number)
            for number in value
        )
    )


def is_std(value: Any) -> bool:
    """Tells whether a value is finite positive numbers, one for each channel."""
    return is_mean(value) and all(number > 0 for number in value)


def in_unit_pixels(
    mean: Sequence[float], std: Sequence[float], pixel_units: int = 1
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Brings a normalisation to pixels in [0, 1].

    Args:
      mean, std: numbers, one for each channel; empty: not given.
      pixel_units: what a white pixel is in their units. 1 leaves them as they are, 255 divides both
        by 255, once.

    Returns:
      (mean, std).

    Raises:
      TeacherError: they are no such numbers, or cannot be in these units.
    """
    for name, values, holds, right in (
        ("mean", mean, is_mean, "numbers, one for each channel"),
        ("std", std, is_std, "positive numbers, one for each channel"),
    ):
        if len(values) and not holds(tuple(values)):
            raise TeacherError(f"{name} must be {right}, not {tuple(values)}.")
    mean, std = tuple(map(float, mean)), tuple(map(float, std))
    if pixel_units == 1:
        found = fault(mean, std)
    elif pixel_units == 255:
        found = _fault_in_255(mean, std)
        # To twelve digits, so that 123.675 becomes 0.485 and not a neighbour of it.
        mean, std = (tuple(float(f"{x / 255:.12g}") for x in values) for values in (mean, std))
    else:
        found = f"pixel_units must be 1 or 255, not {pixel_units!r}."
    if found:
        raise TeacherError(found)
    return mean, std


def fault(mean: Sequence[float], std: Sequence[float]) -> str | None:
    """Says why a normalisation cannot be one of pixels in [0, 1], and what was probably meant.

    Args:
      mean, std: numbers by channel; empty: not given.

    Returns:
      A sentence, or None where nothing is wrong.
    """
    parts = {"mean": mean, "std": std}
    if mean and std and len(mean) != len(std):
        return f"mean has {len(mean)} numbers and std {len(std)}; both have one for each channel."
    wrong = {name for name in parts if not all(map(_IN_UNITS[name], parts[name]))}
    if not wrong:
        return None
    if "mean" in wrong and std and min(std) >= 1:
        wrong.add("std")  # which may be 1: of pixels that nobody scaled
    given = {name: values for name, values in parts.items() if name in wrong}
    least = {"mean": 0.0, "std": 1.0 if "mean" in wrong else _LEAST_IN_255}
    if not all(least[name] <= min(x) and 1 <= max(x) <= 255 for name, x in given.items()):
        return (
            f"{_written(given, ' ')} cannot be of pixels in [0, 1], whose mean lies from 0 to 1, "
            "and whose std from 1/255 (of a network on pixels of 0 to 255) to 1 (pixels as they "
            "are)."
        )
    right = {name: tuple(x / 255 for x in values) for name, values in given.items()}
    both = not (mean and std) or len(wrong) == 2 or max(mean) == 0
    return (
        f"{_written(given, ' ')} are in units of 0 to 255, where those of pixels in [0, 1] are "
        f"meant: give {_written(right)}{_preset(**parts | right)}"
        + (", or --pixel_units=255 to convert or evaluate, which divides both." if both else ".")
    )


def _fault_in_255(mean: tuple[float, ...], std: tuple[float, ...]) -> str | None:
    """Says why a normalisation cannot be one of pixels from 0 to 255, and what was meant."""
    parts = {"mean": mean, "std": std}
    if not mean or not std:
        return (
            "pixel_units=255 is the unit of mean and std, which have to be given with it; 0,0,0 "
            "and 1,1,1 are those of pixels from 0 to 255 as they are."
        )
    if len(mean) != len(std):
        return fault(mean, std)
    if min(mean) < 0 or max(*mean, *std) > 255:
        return (
            f"{_written(parts, ' ')} cannot be of pixels from 0 to 255: neither is negative or "
            "above 255."
        )
    wrong = {"mean"} if 0 < max(mean) <= 1 else set()
    if min(std) < 255 * _LEAST_STD:
        wrong.add("std")
    if not wrong:
        return None
    given = {name: values for name, values in parts.items() if name in wrong}
    right = {name: tuple(255 * x for x in values) for name, values in given.items()}
    whole = len(wrong) == 2 or max(mean) == 0
    return (
        f"{_written(given, ' ')} are in units of 0 to 1{_preset(mean, std)}, where pixel_units=255 "
        f"asks for units of 0 to 255: "
        + ("leave pixel_units away." if whole else f"give {_written(right)}.")
    )


def _written(parts: dict[str, tuple[float, ...]], equals: str = "=") -> str:
    """Writes numbers as people give them: mean=0.5,0.5,0.5 and std=0.25,0.25,0.25."""
    return " and ".join(
        f"{name}{equals}{','.join(f'{value:.6g}' for value in values)}"
        for name, values in parts.items()
    )


def _preset(mean: Sequence[float], std: Sequence[float]) -> str:
    """Returns in words which preset a normalisation is, if it is one but for rounding."""
    for name, parts in NORMALISATIONS.items():
        for values, known in zip((mean, std), parts, strict=True):
            if any(abs(x - y) > _CLOSE for x, y in zip(values, known, strict=False)):
                break
        else:
            return f" (the preset {name})"
    return ""


def _parse(which: str, part: int, text: str) -> tuple[float, ...]:
    if text in NORMALISATIONS:
        return NORMALISATIONS[text][part]
    numbers = text.strip("()[] ").split(",")
    if all(
        re.fullmatch(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*", number) for number in numbers
    ):
        return tuple(map(float, numbers))
    raise ConfigError(
        f"--{which} takes numbers such as 0.485,0.456,0.406, one for each channel, or a name, not "
        f"{text!r}: {nearest(text, NORMALISATIONS)}"
    )
