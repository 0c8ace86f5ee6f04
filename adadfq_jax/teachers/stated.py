"""What a user states of a teacher, beside what its file says itself."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from adadfq_jax.errors import TeacherError
from adadfq_jax.models import registry
from adadfq_jax.models.preparation import USUAL
from adadfq_jax.teachers.native import LARGEST_IMAGE
from adadfq_jax.teachers.normalisation import in_unit_pixels


@dataclasses.dataclass(frozen=True)
class Stated:
    """What a user states of a teacher; what is left out is what the file says.

    Attributes:
      architecture: a name of `registry.ARCHITECTURES`.
      mean, std: normalisation of pixels in [0, 1], a number for each channel, or one that holds for
        all; empty: not stated.
      image_size: side of the images in pixels.
      entry: which entry of a PyTorch checkpoint holds the weights; `model.module` is one inside
        another.
      prefix: what stands before the names of the network's weights, such as `backbone`.
      preparation: fields of `Preparation` that are stated.
    """

    architecture: str | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    image_size: int | None = None
    entry: str | None = None
    prefix: str | None = None
    preparation: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    pixel_units: dataclasses.InitVar[int] = 1

    def __post_init__(self, pixel_units: int):
        """Checks what is stated.

        Args:
          pixel_units: 1 for mean and std of pixels in [0, 1]; 255 for those of pixels from 0 to
            255, which are divided by 255 once.

        Raises:
          TeacherError: the image size cannot be one, or mean and std cannot be in their units.
          ConfigError: the architecture is unknown, or the preparation cannot be.
        """
        size = self.image_size
        if size is not None and not 1 <= size <= LARGEST_IMAGE:
            raise TeacherError(
                f"image_size must be at least 1 and at most {LARGEST_IMAGE}, not {size}."
            )
        USUAL.changed(**self.preparation)
        if self.architecture is not None:
            registry.parse(self.architecture)
        mean, std = (
            (value,) if isinstance(value, int | float) else tuple(value)
            for value in (self.mean, self.std)
        )
        mean, std = in_unit_pixels(mean, std, pixel_units)
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "std", std)

    def of_channels(self, label: str, channels: int) -> "Stated":
        """Returns this with a mean and a std for each of a network's channels.

        Raises:
          TeacherError: they are of another number of channels.
        """
        mean, std = (x * channels if len(x) == 1 else x for x in (self.mean, self.std))
        if mean and len(mean) != channels:
            raise TeacherError(
                f"{label} takes images of {channels} channel{'s' * (channels > 1)}, but mean and "
                f"std have {len(mean)} numbers: give {channels}, or one for all."
            )
        return dataclasses.replace(self, mean=mean, std=std)

    def or_else(self, **said: object) -> "Stated":
        """Returns this, completed by what somebody else says of the same fields."""
        missing = {name: value for name, value in said.items() if not getattr(self, name)}
        if "preparation" in said:
            missing["preparation"] = {**said["preparation"], **self.preparation}
        return dataclasses.replace(self, **missing)
