"""How image files become the images that a network was trained on."""

import dataclasses
from typing import Any

from adadfq_jax.errors import ConfigError, nearest

INTERPOLATIONS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
CROPS = ("center", "squash")
_LARGEST_SIDE = 4096


@dataclasses.dataclass(frozen=True)
class Preparation:
    """How an image file is resized and cropped to a network's size.

    Attributes:
      resize: side in pixels to which an image is resized, before the centre of the network's size
        is cut out; None for what is usual (see `data.images.fit`).
      interpolation: one of `INTERPOLATIONS`, antialiased.
      crop: `center` resizes the shorter side and keeps the proportions, `squash` resizes both.
    """

    resize: int | None = None
    interpolation: str = "bilinear"
    crop: str = "center"

    def __post_init__(self):
        """Checks the fields.

        Raises:
          ConfigError: one of them cannot be.
        """
        size = self.resize
        if size is not None and (type(size) is not int or not 1 <= size <= _LARGEST_SIDE):
            raise ConfigError(f"resize must be at least 1 and at most {_LARGEST_SIDE}, not {size}.")
        for name, known in (("interpolation", INTERPOLATIONS), ("crop", CROPS)):
            given = getattr(self, name)
            if given not in known:
                raise ConfigError(f"{name} cannot be {given!r:.40}: {nearest(str(given), known)}")

    def changed(self, **stated: Any) -> "Preparation":
        """Returns this with the fields that are stated; those that are None stay."""
        given = {name: value for name, value in stated.items() if value is not None}
        return dataclasses.replace(self, **given)

    def described(self) -> dict[str, Any]:
        """Returns what files say of it: an entry `preparation`, or nothing of the usual one."""
        return {} if self == USUAL else {"preparation": dataclasses.asdict(self)}


USUAL = Preparation()


def preparation_of(described: dict[str, Any]) -> Preparation:
    """Reads what `described` wrote, from a file that nobody vouches for.

    Raises:
      ConfigError: it is no preparation.
    """
    written = described.get("preparation", {})
    fields = {field.name for field in dataclasses.fields(Preparation)}
    if not isinstance(written, dict) or not written.keys() <= fields:
        raise ConfigError(f"a preparation has the fields {', '.join(sorted(fields))}.")
    return Preparation(**written)
