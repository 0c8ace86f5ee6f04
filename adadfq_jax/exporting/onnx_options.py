"""What can be asked of an ONNX file."""

import dataclasses

from adadfq_jax.errors import ConfigError, nearest

FORMS = ("integer", "exact")
STORAGES = ("int8", "uint4")
# After the name of a layer, that of the sums of its inputs.
SUMS = "/sums"
OPSET, OPSET_OF_UINT4, NEWEST_OPSET = 13, 21, 24


@dataclasses.dataclass(frozen=True)
class OnnxOptions:
    """How an ONNX file is written.

    Attributes:
      form: `integer`, of which engines make integers, or `exact`, which computes as the student
        does; None: integer for a student, exact for a teacher.
      storage: of codes of up to 4 bits in the integer form: `int8`, which is the default, or
        `uint4`, of half the size, which onnxruntime loads since 1.20.
      opset: ONNX's; None for the lowest that has all that is used.
      fold_norms: in the exact form, whether BatchNorms are folded into the convolutions before
        them; in the integer form they always are.
      raw_pixels: whether the model takes float pixels in [0, 255] and normalises them itself, or
        normalised images.
    """

    form: str | None = None
    storage: str | None = None
    opset: int | None = None
    fold_norms: bool = False
    raw_pixels: bool = False

    def check(self, format: str) -> None:
        """Checks the options alone.

        Args:
          format: of the file.

        Raises:
          ConfigError: they cannot be used together, or with that format.
        """
        given = [name for name, value in dataclasses.asdict(self).items() if value]
        if given and format != "onnx":
            raise ConfigError(f"{', '.join(given)}: an option of onnx, not of {format}.")
        for name, value, known in (
            ("form", self.form, FORMS),
            ("storage", self.storage, STORAGES),
        ):
            if value is not None and value not in known:
                raise ConfigError(f"unknown {name} {value!r}: {nearest(value, known)}")
        if self.storage and self.form == "exact":
            raise ConfigError("storage is an option of the integer form, not of the exact one.")
        least = OPSET_OF_UINT4 if self.storage == "uint4" else OPSET
        if self.opset is not None and not least <= self.opset <= NEWEST_OPSET:
            raise ConfigError(
                f"opset must be from {least} to {NEWEST_OPSET}"
                f"{' for codes of 4 bits' if self.storage == 'uint4' else ''}, not {self.opset}."
            )


DEFAULTS = OnnxOptions()
