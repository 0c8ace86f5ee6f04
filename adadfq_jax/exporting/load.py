"""Opening an exported file, by what its suffix says; and what each format needs installed."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from adadfq_jax.config.fields import FORMAT_BY_SUFFIX
from adadfq_jax.errors import ConfigError, ExportError, install_command
from adadfq_jax.exporting import contract, engines, integers
from adadfq_jax.models.network import Network, check_images, normalize
from adadfq_jax.models.preparation import Preparation, preparation_of
from adadfq_jax.storage.files import on_a_disk


def require(format: str) -> None:
    """Makes sure that what a format needs is installed.

    Raises:
      ExportError: it is not; says how to install it.
    """
    if format == "onnx":
        import_onnx()
        engines.require("onnxruntime")
    if format == "pytorch":
        from adadfq_jax.exporting import pytorch

        pytorch.require()


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ExportedModel:
    """An exported file that can be called and measured as the network that it came from.

    Attributes:
      architecture, classes, image_size, mean, std, preparation, class_names: as in `Network`.
      answer: maps normalised float32 images (B, H, W, channels) to logits (B, classes).
    """

    architecture: str
    classes: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    preparation: Preparation
    answer: Callable[[np.ndarray], np.ndarray]
    class_names: tuple[str, ...] | None = None

    def __repr__(self) -> str:
        """One line without functions, for a notebook."""
        side = self.image_size
        return f"ExportedModel({self.architecture}, {self.classes} classes, {side}x{side} pixels)"

    @property
    def channels(self) -> int:
        """The number of channels of an image."""
        return len(self.mean)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Classifies images: uint8 pixels, or floats that are already normalised."""
        images = check_images(images, self.image_size, self.channels)
        return self.answer(np.asarray(normalize(images, self.mean, self.std), np.float32))


def load_exported(path: str | Path, engine: str | None = None) -> Network | ExportedModel:
    """Opens an exported file, to be called or measured.

    Args:
      path: a file of `export`; its suffix says the format.
      engine: for ONNX, what runs it: `onnxruntime`, which is the default, or `openvino`.

    Returns:
      The simulated network for `integers` and `pytorch`, else a model that runs the file itself.

    Raises:
      ConfigError: an engine is given that is not known, or for a file of another format.
      ExportError: the file is missing, none of `export`'s, damaged, of a newer format, or what runs
        it is not installed.
    """
    path = on_a_disk(path)
    if not path.is_file():
        raise ExportError(f"there is no file {str(path)!r}.")
    format = FORMAT_BY_SUFFIX.get(path.suffix)
    if engine is not None and format != "onnx":
        raise ConfigError(f"an engine runs files of ONNX (.onnx), not {str(path)!r}.")
    match format:
        case None:
            raise ExportError(
                f"{str(path)!r} is no exported file: those end in {', '.join(FORMAT_BY_SUFFIX)}."
            )
        case "integers":
            return integers.read(path).network
        case "onnx":
            return _load_onnx(path, engine or "onnxruntime")
        case "stablehlo":
            from adadfq_jax.exporting import stablehlo

            described, program = stablehlo.read(path)
            model = _model(described, lambda images: np.asarray(program.call(images)))
            expected = contract.describe_input(model, stablehlo.LAYOUT)
            return _checked(path, model, described, expected, program.in_avals[0].shape[1:])
        case "pytorch":
            from adadfq_jax.exporting import pytorch

            return pytorch.read(path)
        case format:
            raise AssertionError(format)


def import_onnx() -> Any:
    """Returns the module that writes and reads ONNX.

    Raises:
      ExportError: what it needs is not installed.
    """
    try:
        import onnx  # noqa: F401

        from adadfq_jax.exporting import onnx_qdq
    except ImportError as error:
        raise ExportError(f"the format onnx needs: {install_command('export')}.") from error
    return onnx_qdq


def _load_onnx(path: Path, engine: str) -> ExportedModel:
    engines.require(engine)
    onnx_qdq = import_onnx()
    described, content = onnx_qdq.read(path)
    session = engines.open_session(content, engine)
    mean, std = (np.float32(described[name]) for name in ("mean", "std"))

    def answer(images: np.ndarray) -> np.ndarray:
        if described["raw_pixels"]:
            images = (images * std + mean) * np.float32(255)
        return session.answer(images.transpose(0, 3, 1, 2))

    model = _model(described, answer)
    expected = contract.describe_input(model, onnx_qdq.LAYOUT, described["raw_pixels"])
    return _checked(path, model, described, expected, session.input_shape)


def _model(described: dict[str, Any], answer: Callable[[np.ndarray], np.ndarray]) -> ExportedModel:
    return ExportedModel(
        architecture=described["architecture"],
        classes=described["classes"],
        image_size=described["image_size"],
        mean=tuple(described["mean"]),
        std=tuple(described["std"]),
        preparation=preparation_of(described),
        answer=answer,
        class_names=contract.read_names(described),
    )


def _checked(
    path: Path,
    model: ExportedModel,
    described: dict[str, Any],
    expected: dict[str, Any],
    taken: Sequence[int],
) -> ExportedModel:
    """Returns a model after comparing what its file says of the input with what the file takes.

    Args:
      path: the file.
      model: it.
      described: what the file says of itself.
      expected: of `contract.describe_input`.
      taken: shape of one input that the program in the file takes.

    Raises:
      ExportError: the file says something else.
    """
    contract.check_input(repr(str(path)), described, expected)
    said = contract.input_shape(described)
    if said not in (None, tuple(taken)):
        raise ExportError(
            f"{str(path)!r} says that its input is {said}, but its program takes {tuple(taken)}."
        )
    return model
