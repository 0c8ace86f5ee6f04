"""Students as files that run without this package, each proved equal before it is kept.

`graph` reads a network's operations off its module and `quantized` its integers; the formats
(`integers`, `onnx_qdq`, `stablehlo`, `pytorch`) write both down, and `verification` compares.
"""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from adadfq_jax.config import EXPORT_FORMATS as FORMATS
from adadfq_jax.errors import ConfigError, ExportError, VerificationError, install_command, nearest
from adadfq_jax.exporting import integers
from adadfq_jax.exporting.quantized import QuantizedNetwork, take_apart
from adadfq_jax.exporting.verification import Report, compare
from adadfq_jax.network import Network, normalize
from adadfq_jax.storage import on_a_disk, refuse_existing
from adadfq_jax.student import Student
from adadfq_jax.teachers import Teacher, own

__all__ = [
    "FORMATS",
    "ExportedModel",
    "Report",
    "check_output",
    "export",
    "load_exported",
    "require",
]

_IMAGES = 256
_BY_SUFFIX = {suffix: name for name, suffixes in FORMATS.items() for suffix in suffixes}


def export(
    student: Student | Teacher,
    path: str | Path,
    format: str | None = None,
    *,
    overwrite: bool = False,
    fold_norms: bool = False,
    raw_pixels: bool = False,
    images: np.ndarray | None = None,
) -> Report:
    """Writes a student to a file, after proving that the file is the student.

    Args:
      student: of `quantize` or `load_student`; or a teacher, in full precision to compare with, as
        onnx only.
      path: the file.
      format: one of `FORMATS`; by default what the file's suffix says.
      overwrite: whether a file that exists may be replaced.
      fold_norms: for ONNX, whether BatchNorms are folded into the convolutions before them.
      raw_pixels: for ONNX, whether the model takes pixels in [0, 255], or normalised images.
      images: what to compare on, (N, H, W, 3), uint8 or normalised; by default 256 images that the
        student's own generator makes, or, for a teacher, noise.

    Returns:
      What was compared, and the sizes.

    Raises:
      ConfigError: the path or an option does not fit the format.
      ExportError: a library is missing, or the file cannot be written.
      VerificationError: the file answers otherwise than the student; none is left.
    """
    path = on_a_disk(path)
    format = check_output(
        path, format, overwrite=overwrite, fold_norms=fold_norms, raw_pixels=raw_pixels
    )
    if not isinstance(student, Student | Teacher):
        raise ConfigError(
            f"export takes a student, of quantize or load_student, or a teacher, not {student!r}."
        )
    if isinstance(student, Teacher):
        if format != "onnx":
            raise ConfigError(f"a teacher can be exported as onnx only, not as {format}.")
        if images is None:
            shape = _IMAGES, student.image_size, student.image_size, 3
            images = np.random.default_rng(0).standard_normal(shape, np.float32)
    elif images is None:
        if student.draw is None:
            raise ConfigError("the student has no generator: give images to compare on.")
        images, _ = student.draw(_IMAGES)
    side = student.image_size
    if not len(images) or images.shape[1:] != (side, side, 3):
        raise ConfigError(f"images must be (N, {side}, {side}, 3), not {images.shape}.")
    require(format)
    network = take_apart(student)
    content = _content(network, student, format, fold_norms, raw_pixels)
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        partial.write_bytes(content)
        report = compare(student, network, load_exported(partial), images, len(content), format)
        if report.failure:
            raise VerificationError(f"{str(path)!r} was not written: {report.failure}")
        partial.replace(path)
    except OSError as error:
        raise ExportError(f"{str(path)!r} cannot be written: {error.strerror}.") from error
    finally:
        partial.unlink(missing_ok=True)
    return report


def check_output(
    path: Path,
    format: str | None = None,
    *,
    overwrite: bool = False,
    fold_norms: bool = False,
    raw_pixels: bool = False,
) -> str:
    """Returns the format of a file to be written, of which `export` has the arguments.

    Raises:
      ConfigError: they cannot be used together, or the file is there already.
    """
    format = check_format(format, path)
    if (fold_norms or raw_pixels) and format != "onnx":
        raise ConfigError(f"folded BatchNorms and raw pixels are options of onnx, not of {format}.")
    refuse_existing(path, overwrite)
    if path.is_file() and path.suffix == ".safetensors" and own.is_own(path):
        raise ConfigError(
            f"{str(path)!r} is a teacher, which an exported student does not replace; name another "
            "file."
        )
    if not path.parent.is_dir():
        raise ConfigError(f"there is no folder {str(path.parent)!r} to write {path.name} in.")
    return format


def check_format(format: str | None, path: Path) -> str:
    """Returns the format of a file to be written.

    Raises:
      ConfigError: the format is unknown, or the file's suffix says none, or another one.
    """
    if format is not None and format not in FORMATS:
        raise ConfigError(f"unknown format {format!r}: {nearest(format, FORMATS)}")
    found = _BY_SUFFIX.get(path.suffix)
    if found is None:
        raise ConfigError(
            f"{str(path)!r} should end in {' or '.join(FORMATS[format] if format else _BY_SUFFIX)}."
        )
    if format not in (None, found):
        raise ConfigError(f"{str(path)!r} should end in {FORMATS[format][0]} for {format}.")
    return found


def _content(
    network: QuantizedNetwork,
    student: Student | Teacher,
    format: str,
    fold_norms: bool,
    raw_pixels: bool,
) -> bytes:
    from adadfq_jax import __version__

    about = {
        "adadfq_jax": __version__,
        "teacher": getattr(student, "teacher", student).digest,
    }
    if isinstance(student, Student):
        about |= {"student": student.digest, "step": student.step, "result": student.result}
    # Each format's library is imported with it.
    match format:
        case "integers":
            return integers.to_bytes(network, about)
        case "onnx":
            onnx_qdq = _onnx()
            model = onnx_qdq.build(network, about, fold_norms=fold_norms, raw_pixels=raw_pixels)
            return model.SerializeToString(deterministic=True)
        case "stablehlo":
            from adadfq_jax.exporting import stablehlo

            return stablehlo.to_bytes(network, about)
        case "pytorch":
            from adadfq_jax.exporting import pytorch

            return pytorch.to_bytes(network, about, student.teacher.keys)
    raise AssertionError(format)


def require(format: str) -> None:
    """Makes sure that what a format needs is installed.

    Raises:
      ExportError: it is not; says how to install it.
    """
    if format == "onnx":
        _onnx()
        _onnxruntime()
    if format == "pytorch":
        from adadfq_jax.exporting import pytorch

        pytorch.require()


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ExportedModel:
    """An exported file that can be called and measured as the network that it came from.

    Attributes:
      architecture, classes, image_size, mean, std: as in `Network`.
      answer: maps normalised float32 images (B, H, W, 3) to logits (B, classes).
    """

    architecture: str
    classes: int
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    answer: Callable[[np.ndarray], np.ndarray]

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Classifies images: uint8 pixels, or floats that are already normalised."""
        return self.answer(np.asarray(normalize(images, self.mean, self.std), np.float32))


def load_exported(path: str | Path) -> Network | ExportedModel:
    """Opens an exported file, to be called or measured.

    Args:
      path: a file of `export`; its suffix says the format.

    Returns:
      The simulated network for `integers` and `pytorch`, else a model that runs the file itself.

    Raises:
      ExportError: the file is missing, none of `export`'s, damaged, of a newer format, or what runs
        it is not installed.
    """
    path = on_a_disk(path)
    if not path.is_file():
        raise ExportError(f"there is no file {str(path)!r}.")
    match _BY_SUFFIX.get(path.suffix):
        case None:
            raise ExportError(
                f"{str(path)!r} is no exported file: those end in {', '.join(_BY_SUFFIX)}."
            )
        case "integers":
            return integers.read(path).network
        case "onnx":
            return _load_onnx(path)
        case "stablehlo":
            from adadfq_jax.exporting import stablehlo

            described, program = stablehlo.read(path)
            return _model(described, lambda images: np.asarray(program.call(images)))
    from adadfq_jax.exporting import pytorch

    return pytorch.read(path)


def _onnx() -> Any:
    try:
        import onnx  # noqa: F401

        from adadfq_jax.exporting import onnx_qdq
    except ImportError as error:
        raise ExportError(f"the format onnx needs: {install_command('export')}.") from error
    return onnx_qdq


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise ExportError(f"to run ONNX files: {install_command('export')}.") from error
    return onnxruntime


def _load_onnx(path: Path) -> ExportedModel:
    onnx_qdq, onnxruntime = _onnx(), _onnxruntime()
    described, content = onnx_qdq.read(path)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    mean, std = (np.float32(described[name]) for name in ("mean", "std"))

    def answer(images: np.ndarray) -> np.ndarray:
        if described["raw_pixels"]:
            images = (images * std + mean) * np.float32(255)
        (logits,) = session.run(None, {onnx_qdq.INPUT: images.transpose(0, 3, 1, 2)})
        return logits

    return _model(described, answer)


def _model(described: dict[str, Any], answer: Callable[[np.ndarray], np.ndarray]) -> ExportedModel:
    return ExportedModel(
        architecture=described["architecture"],
        classes=described["classes"],
        image_size=described["image_size"],
        mean=tuple(described["mean"]),
        std=tuple(described["std"]),
        answer=answer,
    )
