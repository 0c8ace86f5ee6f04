"""Writing a student to a file, after proving that the file is the student."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from adadfq_jax.config.fields import EXPORT_FORMATS as FORMATS
from adadfq_jax.config.fields import FORMAT_BY_SUFFIX
from adadfq_jax.errors import ConfigError, ExportError, VerificationError, nearest
from adadfq_jax.exporting import engines, integers
from adadfq_jax.exporting.description import read_about
from adadfq_jax.exporting.load import import_onnx, load_exported, require
from adadfq_jax.exporting.onnx_options import DEFAULTS, OnnxOptions
from adadfq_jax.exporting.quantized import QuantizedNetwork, take_apart
from adadfq_jax.exporting.verification import Report, compare
from adadfq_jax.models.display import not_data_free
from adadfq_jax.models.network import Student, Teacher
from adadfq_jax.storage.files import check_folder_of, check_replaceable, on_a_disk, written_whole

_IMAGES = 256
_SATURATES = (
    "on processors without VNNI, two products of 8-bit codes may not fit 16 bits, and their sum "
    "become wrong; with weights of up to 6 bits, or activations of up to 7, they fit"
)


def export(
    student: Student | Teacher,
    path: str | Path,
    format: str | None = None,
    *,
    overwrite: bool = False,
    images: np.ndarray | None = None,
    class_names: Sequence[str] | None = None,
    **options: Any,
) -> Report:
    """Writes a student to a file, after proving that the file is the student.

    Args:
      student: of `quantize` or `load_student`; or a teacher, in full precision to compare with, as
        onnx only.
      path: the file.
      format: one of `FORMATS`; by default what the file's suffix says.
      overwrite: whether a file that exists may be replaced.
      images: what to compare on, (N, H, W, channels), uint8 or normalised; by default 256
        images that the student's own generator makes, or, for a teacher, noise.
      class_names: names that the file gives the classes, in the order of the logits; by default
        those of the images that the run was measured on, where they have any.
      options: of an ONNX file: `form`, `storage`, `opset`, `fold_norms`, `raw_pixels`; see
        `onnx_options.py`.

    Returns:
      What was compared, and the sizes.

    Raises:
      ConfigError: the path or an option does not fit the format.
      ExportError: a library is missing, or the file cannot be written.
      VerificationError: the file answers otherwise than the student; none is left.
    """
    path, asked = on_a_disk(path), OnnxOptions(**options)
    format = check_output(path, format, overwrite=overwrite, options=asked)
    if not isinstance(student, Student | Teacher):
        raise ConfigError(
            f"export takes a student, of quantize or load_student, or a teacher, not a "
            f"{type(student).__name__}."
        )
    if isinstance(student, Teacher):
        if format != "onnx":
            raise ConfigError(f"a teacher can be exported as onnx only, not as {format}.")
        if images is None:
            shape = _IMAGES, student.image_size, student.image_size, student.channels
            images = np.random.default_rng(0).standard_normal(shape, np.float32)
    elif images is None:
        if student.draw is None:
            raise ConfigError("the student has no generator: give images to compare on.")
        images, _ = student.draw(_IMAGES)
    side, channels = student.image_size, student.channels
    if not len(images) or images.shape[1:] != (side, side, channels):
        raise ConfigError(f"images must be (N, {side}, {side}, {channels}), not {images.shape}.")
    if class_names is not None:
        if len(class_names) != student.classes:
            raise ConfigError(
                f"class_names must be {student.classes} names, one of each class, not "
                f"{len(class_names)}."
            )
        student = dataclasses.replace(student, class_names=tuple(class_names))
    require(format)
    network = take_apart(student)
    content = _content(network, student, format, asked)
    try:
        with written_whole(path) as partial:
            partial.write_bytes(content)
            runners = engines.installed() if format == "onnx" else (None,)
            models = {
                engine or "this package": load_exported(partial, engine) for engine in runners
            }
            rounding = import_onnx().rounding(network, content) if format == "onnx" else {}
            report = compare(student, network, models, images, len(content), format, rounding)
            if report.failure:
                raise VerificationError(f"{str(path)!r} was not written: {report.failure}")
    except OSError as error:
        raise ExportError(f"{str(path)!r} cannot be written: {error.strerror}.") from error
    notes = _notes(network, path, asked) if format == "onnx" else ()
    if isinstance(student, Student) and student.given_images:
        notes += (("data", not_data_free(student.given_images)),)
    return dataclasses.replace(report, notes=notes)


def check_output(
    path: Path,
    format: str | None = None,
    *,
    overwrite: bool = False,
    options: OnnxOptions = DEFAULTS,
) -> str:
    """Returns the format of a file to be written, of which `export` has the arguments.

    Raises:
      ConfigError: they cannot be used together, or the file is there already.
    """
    format = check_format(format, path)
    options.check(format)
    check_replaceable(path, "an exported student", lambda place: bool(read_about(place)), overwrite)
    check_folder_of(path)
    return format


def check_format(format: str | None, path: Path) -> str:
    """Returns the format of a file to be written.

    Raises:
      ConfigError: the format is unknown, or the file's suffix says none, or another one.
    """
    if format is not None and format not in FORMATS:
        raise ConfigError(f"unknown format {format!r}: {nearest(format, FORMATS)}")
    found = FORMAT_BY_SUFFIX.get(path.suffix)
    if found is None:
        known = FORMATS[format] if format else FORMAT_BY_SUFFIX
        raise ConfigError(f"{str(path)!r} should end in {' or '.join(known)}.")
    if format not in (None, found):
        raise ConfigError(f"{str(path)!r} should end in {FORMATS[format][0]} for {format}.")
    return found


def _content(
    network: QuantizedNetwork, student: Student | Teacher, format: str, options: OnnxOptions
) -> bytes:
    from adadfq_jax import __version__

    about = {
        "adadfq_jax": __version__,
        "teacher": getattr(student, "teacher", student).digest,
    }
    if isinstance(student, Student):
        result = student.result and dataclasses.asdict(student.result)
        if result:
            del result["class_names"]  # which stand beside the input
        about |= {"student": student.digest, "step": student.step, "result": result}
        if student.given_images:
            about["given_images"] = student.given_images
    # Each format's library is imported with it.
    match format:
        case "integers":
            return integers.to_bytes(network, about)
        case "onnx":
            onnx_qdq = import_onnx()
            model = onnx_qdq.build(network, about, options)
            return model.SerializeToString(deterministic=True)
        case "stablehlo":
            from adadfq_jax.exporting import stablehlo

            return stablehlo.to_bytes(network, about)
        case "pytorch":
            from adadfq_jax.exporting import pytorch

            return pytorch.to_bytes(network, about, student.teacher.keys)
    raise AssertionError(format)


def _notes(
    network: QuantizedNetwork, path: Path, options: OnnxOptions
) -> tuple[tuple[str, str], ...]:
    """Returns what is to be said of an ONNX file's form."""
    onnx_qdq = import_onnx()
    described, _ = onnx_qdq.read(path)
    notes = [("form", described["form"])]
    if described["form"] != "integer":
        return tuple(notes)
    if options.storage is None and options.opset is None:
        smaller = onnx_qdq.build(network, {}, dataclasses.replace(options, storage="uint4"))
        if smaller.ByteSize() < path.stat().st_size:
            notes.append(("with --storage=uint4", f"{smaller.ByteSize():,} bytes"))
    reasons: dict[str, list[str]] = {}
    for layer, reason in described["not_integer"].items():
        reasons.setdefault(reason, []).append(layer)
    notes += [("not integer", f"{reason}: {', '.join(names)}") for reason, names in reasons.items()]
    if described["saturating"]:
        notes.append(("warning", _SATURATES))
    return tuple(notes)
