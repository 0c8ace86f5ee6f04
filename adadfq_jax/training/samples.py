"""The verb `adadfq sample`: writes images of a run's generator, with labels and P's logits."""

from pathlib import Path

import numpy as np

from adadfq_jax.errors import ConfigError
from adadfq_jax.models.pictures import pixels, to_image
from adadfq_jax.storage.files import check_replaceable, on_a_disk, written_whole
from adadfq_jax.training.held_out import generated_batches
from adadfq_jax.training.student import load_state

_LOGITS = "logits.npz"


def write_samples(
    workdir: str | Path, count: int, output: str | Path, *, overwrite: bool = False
) -> float:
    """Makes held-out images with a run's newest generator and writes all of them, or none.

    Labels run through the classes in turn. The teacher's logits are those of the images as the
    generator made them. The pixels are the same images with the normalisation undone, rounded, and
    cut off beyond black and white, so their logits can differ a little.

    Args:
      workdir: the run's folder.
      count: number of images N.
      output: a file *.npz of `x`, uint8 pixels (N, H, W, channels), `y`, labels (N,), and `logits`,
        float32 (N, C); or a folder of CLASS/NUMBER.png with `logits` and `y` by number in
        logits.npz. Both can be read as evaluation sets.
      overwrite: whether to replace what an earlier call wrote.

    Returns:
      The share of the images whose label is the class that the teacher gives them.

    Raises:
      ConfigError: `count` or `output` cannot be used.
      CheckpointError: there is no run, or no checkpoint that can be read.
    """
    if count < 1:
        raise ConfigError(f"count must be at least 1, not {count}.")
    is_file = _check_output(str(output), overwrite)
    images, labels, logits = make_samples(workdir, count)
    target = on_a_disk(output).absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(target) as partial:
        if is_file:
            np.savez(partial, x=images, y=labels, logits=logits)
        else:
            _write_folder(partial, images, labels, logits)
    return float(np.mean(logits.argmax(-1) == labels))


def make_samples(workdir: str | Path, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Makes images with a run's newest generator.

    Args:
      workdir: the run's folder.
      count: number of images N; a larger N adds images after the same first ones.

    Returns:
      (pixels, uint8 (N, H, W, channels); labels (N,), the classes in turn; the teacher's
      logits (N, C)).

    Raises:
      CheckpointError: there is no run, or no checkpoint that can be read.
    """
    game, state, teacher = load_state(workdir)[:3]
    parts = []
    for images, labels in generated_batches(game, state, count):
        logits = np.asarray(teacher(images))
        parts.append((pixels(images, teacher.mean, teacher.std), labels, logits))
    return tuple(np.concatenate(part)[:count] for part in zip(*parts, strict=True))


def _check_output(text: str, overwrite: bool) -> bool:
    """Returns whether the output is a file; raises ConfigError where it cannot be written."""
    path = on_a_disk(text)
    is_file = path.suffix == ".npz" and not text.endswith("/")
    if not text or (path.suffix and not (is_file or text.endswith("/") or path.is_dir())):
        raise ConfigError(f"output {text!r} must be FILE.npz, or a folder, written FOLDER/.")
    if path.exists() and path.is_dir() == is_file:
        there = "a folder" if is_file else "a file"
        raise ConfigError(f"output {text!r} is {there} already; choose another name.")
    if not path.parent.is_dir() and (found := _file_above(path)) is not None:
        raise ConfigError(f"output {text!r} cannot be written: {str(found)!r} is a file.")
    if is_file or (path.is_dir() and any(path.iterdir())):
        is_own = _holds_samples if is_file else _is_of_samples
        check_replaceable(path, "a set of samples", is_own, overwrite)
    return is_file


def _file_above(path: Path) -> Path | None:
    return next((folder for folder in path.parents if folder.is_file()), None)


def _holds_samples(path: Path) -> bool:
    try:
        with np.load(path, allow_pickle=False) as file:
            return set(file.files) == {"x", "y", "logits"}
    except Exception:  # a file of another kind fails in many ways
        return False


def _is_of_samples(folder: Path) -> bool:
    """Tells whether a folder holds what an earlier call wrote, and nothing else."""
    try:
        with np.load(folder / _LOGITS, allow_pickle=False) as file:
            count = len(file["y"])
            if len(file["logits"]) != count:
                return False
    except Exception:  # no such file, or one of somebody else's
        return False
    names = {f"{number:06}.png" for number in range(count)}
    return all(
        entry.name == _LOGITS
        or (
            entry.name.isdigit()
            and entry.is_dir()
            and all(file.name in names for file in entry.iterdir())
        )
        for entry in folder.iterdir()
    )


def _write_folder(folder: Path, images: np.ndarray, labels: np.ndarray, logits: np.ndarray) -> None:
    folder.mkdir()
    # Names of equal length, since a reader of the folder numbers the classes in order of names.
    width = len(str(logits.shape[1] - 1))
    for label in range(logits.shape[1]):
        (folder / f"{label:0{width}}").mkdir()
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        to_image(image).save(folder / f"{label:0{width}}" / f"{number:06}.png")
    np.savez(folder / _LOGITS, y=labels, logits=logits)
