"""What the verb `evaluate` does: find a network and images, measure, and say it."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adadfq_jax.config.bounds import check_source
from adadfq_jax.config.fields import FORMAT_BY_SUFFIX
from adadfq_jax.data.dataset import Dataset, check_fits
from adadfq_jax.data.load import load_dataset
from adadfq_jax.errors import ConfigError
from adadfq_jax.evaluation import accuracy
from adadfq_jax.exporting.contract import input_in_words
from adadfq_jax.exporting.description import read_about
from adadfq_jax.exporting.load import ExportedModel, load_exported
from adadfq_jax.models.display import not_data_free
from adadfq_jax.models.network import Network, Student, Teacher
from adadfq_jax.quantization.bits import overrides_in_words
from adadfq_jax.storage.files import locate, on_a_disk
from adadfq_jax.teachers.load import read_teacher
from adadfq_jax.teachers.stated import Stated
from adadfq_jax.training import calibrated
from adadfq_jax.training.student import load_student
from adadfq_jax.training.workdir import CONFIG, read_json

_WHAT_TO_MEASURE_ON = "what to measure on: npz, folder, or tfds:NAME, with --path"


@dataclasses.dataclass(frozen=True)
class Measured:
    """What was measured of a network.

    Attributes:
      network: it.
      dataset: the images, if there are any.
      result: of `evaluate`, if there are.
      untrained: of `calibrated.compare_bits`, empty unless bit-widths were asked for.
    """

    network: Network | ExportedModel
    dataset: Dataset | None
    result: dict[str, Any] | None
    untrained: list[dict[str, Any]]

    def to_json(self) -> str:
        """Returns one JSON object in one line; accuracies are fractions."""
        names = ("top1", "top5", "images", "images_per_second")
        found = {name: self.result and self.result[name] for name in names}
        return json.dumps(found | ({"bits": self.untrained} if self.untrained else {}))

    def to_text(self) -> str:
        """Returns tables for a person."""
        parts = [f"{'network':<22}{_described(self.network)}"]
        if not isinstance(self.network, Teacher | Student):
            parts.append(f"{'input':<22}{input_in_words(self.network)}")
        if self.dataset is not None:
            parts += [
                f"{'images':<22}{len(self.dataset)} of {self.dataset.name}",
                accuracy.accuracy_table(self.result, self.dataset.class_names),
            ]
        if self.untrained:
            name = None if self.dataset is None else self.dataset.name
            parts += ["", calibrated.calibrated_table(self.untrained, name)]
        return "\n".join(parts)


def file_row(model: str | Path) -> str:
    """Returns what an exported file is: its format and its student's bit-widths, as a line."""
    path = on_a_disk(model)
    about = read_about(path)
    result = about.get("result") or {}
    words = [FORMAT_BY_SUFFIX[path.suffix]]
    if "weight_bits" in result:
        words.append(f"w{result['weight_bits']}a{result['activation_bits']}")
        words += filter(None, [overrides_in_words(result.get("overrides") or [])])
    if about.get("given_images"):
        words.append(not_data_free(about["given_images"]))
    return f"{'file':<22}{', '.join(words)}, {path.stat().st_size:,} bytes\n"


def check_images(workdir: str | Path | None, source: str | None, bits: Sequence[str]) -> None:
    """Makes sure that there will be images to measure on, before a network is opened.

    Args:
      workdir: the folder of a run, which may name images.
      source: of the evaluation set, as it was given.
      bits: bit-widths to compare, which can be done without images.

    Raises:
      ConfigError: there are none.
    """
    if source or bits:
        return
    config = read_json(locate(workdir) / CONFIG) if workdir else {}
    if config is None:  # no run, which is told when it is opened
        return
    if config.get("data", {}).get("source", "none") == "none":
        run = ", as the run had no images" if workdir else ""
        raise ConfigError(f"--source is missing{run}: {_WHAT_TO_MEASURE_ON}.")


def open_network(
    teacher: str | Path | None,
    workdir: str | Path | None,
    model: str | Path | None = None,
    *,
    stated: Stated,
    engine: str | None = None,
    checkpoint: str | None = None,
) -> tuple[Network | ExportedModel, str, str | None, str | None]:
    """Opens a teacher, a run's student, or an exported file.

    Args:
      teacher: a teacher's file, or
      workdir: the folder of a run, or
      model: a file of `adadfq export`.
      engine: of an .onnx file, as of `load_exported`.
      checkpoint: which one of the run's, as of `load_student`.
      stated: of a teacher; a run's student and an exported file must agree with it.

    Returns:
      (the network; source, path and labels of the evaluation set that its run names, or "none",
      None, None).

    Raises:
      ConfigError: none or several are given, or something given contradicts the network.
      TeacherError, CheckpointError, ExportError: it cannot be read.
    """
    if sum(map(bool, (teacher, workdir, model))) != 1:
        raise ConfigError(
            "give one of --teacher=FILE, --workdir=DIR and --model=FILE: what to measure."
        )
    if checkpoint and not workdir:
        raise ConfigError("--checkpoint is of a run: give --workdir=DIR.")
    if engine and not model:
        raise ConfigError("--engine runs an exported file: give --model=FILE.onnx.")
    if teacher:
        return read_teacher(teacher, stated), "none", None, None
    found = load_exported(model, engine) if model else load_student(workdir, checkpoint)
    for name, value in dataclasses.asdict(stated).items():
        if name == "preparation":
            found = dataclasses.replace(found, preparation=found.preparation.changed(**value))
            continue
        true = getattr(found, name, None)
        if value and value != true:
            raise ConfigError(f"--{name} says {value}, but {model or workdir} has {true}.")
    if model:
        return found, "none", None, None
    data = (read_json(locate(workdir) / CONFIG) or {}).get("data", {})
    return found, data.get("source", "none"), data.get("path"), data.get("labels")


def measure(
    network: Network | ExportedModel,
    source: str,
    path: str | None,
    labels: str | None = None,
    *,
    bits: Sequence[str] = (),
    ranges: str | None = None,
    calibration: int | None = None,
    epochs: int | None = None,
    quick: bool = False,
    batch_size: int = 256,
    show_progress: bool = False,
) -> Measured:
    """Measures a network, or, where bit-widths are given, a teacher and untrained students of it.

    Args:
      network: it. With bit-widths, of a run's student its teacher is measured, and ranges come from
        images of the run's generator.
      source, path, labels: of the evaluation set, as `load_dataset` takes them; it may be "none"
        only with bit-widths.
      bits, quick, show_progress: see `calibrated.compare_bits`.
      ranges, calibration, epochs: see there as well; only with bit-widths.
      batch_size: images at a time.

    Raises:
      ConfigError: something asked for cannot be done.
      DataError: the images cannot be read, or do not fit.
    """
    check_source("--source", source)
    if source == "none" and (path or not bits):
        raise ConfigError(f"--source is missing: {_WHAT_TO_MEASURE_ON}.")
    if source in ("npz", "folder") and not path:
        raise ConfigError(f"--source={source} needs --path: where it lies.")
    draw = None
    if bits and isinstance(network, Student):
        if epochs is not None:
            raise ConfigError("--epochs trains a generator, and the run has one: leave it out.")
        network, draw = network.teacher, network.draw
    elif bits and not isinstance(network, Teacher):
        raise ConfigError(
            "--bits asks about a teacher, or the teacher of a run, and no other file."
        )
    asked = {"ranges": ranges, "calibration": calibration, "epochs": epochs}
    asked = {name: value for name, value in asked.items() if value is not None}
    if (asked or quick) and not bits:
        raise ConfigError(
            f"--{[*asked, 'quick'][0]} is about students that are not trained: give their --bits, "
            "such as --bits=w4a4, or leave it out."
        )
    for text in bits:
        calibrated.usual_bits(text)
    dataset = load_dataset(source, path, labels)
    result = None
    if dataset is not None:
        check_fits(dataset, network)
        result = accuracy.evaluate(network, dataset, batch_size, per_class=True)
    rows = []
    if bits:
        rows = calibrated.compare_bits(
            network,
            bits,
            dataset,
            draw=draw,
            batch_size=batch_size,
            quick=quick,
            show_progress=show_progress,
            **asked,
        )
    return Measured(network, dataset, result, rows)


def _described(network: Network | ExportedModel) -> str:
    if isinstance(network, Teacher):
        return f"{network.architecture}, full precision"
    if not isinstance(network, Student):
        return f"{network.architecture}, exported"
    given = f", {not_data_free(network.given_images)}" if network.given_images else ""
    if network.result is None:
        return (
            f"{network.architecture}, student of a run that is not finished, or of an earlier step"
            f"{given}"
        )
    result = network.result
    bits = f"w{result.weight_bits}a{result.activation_bits}"
    return f"{network.architecture}, {bits}, after {result.steps} steps{given}"
