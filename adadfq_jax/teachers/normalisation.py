"""How images are normalised: presets, and what people write on a command line."""

import re

from adadfq_jax.errors import ConfigError, nearest

# (mean, std) per channel of pixels in [0, 1].
NORMALISATIONS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    # The standard deviations that pytorchcv's CIFAR teachers were trained with.
    "cifar10-pytorchcv": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
}


def parse_normalisation(
    mean: str | None, std: str | None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Reads a normalisation, both parts of it or neither.

    Args:
      mean, std: three numbers with commas between, or a name of `NORMALISATIONS`; a name given for
        one of them stands for both. Empty or None: not given.

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


def _parse(which: str, part: int, text: str) -> tuple[float, ...]:
    if text in NORMALISATIONS:
        return NORMALISATIONS[text][part]
    numbers = text.strip("()[] ").split(",")
    if len(numbers) == 3 and all(
        re.fullmatch(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*", number) for number in numbers
    ):
        return tuple(map(float, numbers))
    raise ConfigError(
        f"--{which} takes three numbers such as 0.485,0.456,0.406, or a name, not {text!r}: "
        f"{nearest(text, NORMALISATIONS)}"
    )
