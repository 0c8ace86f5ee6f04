"""Reading a teacher from a file: the order in which the room's other modules are asked.

`state_dicts` reads named arrays without executing anything (`pickles`), `recognition` tells which
network they are and how it names them (`naming`), `to_flax` turns them into variables. This
project's own files (`native`) say all of it themselves.
"""

import contextlib
import hashlib
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import ml_collections

from adadfq_jax.errors import ConfigError, TeacherError
from adadfq_jax.models import registry
from adadfq_jax.models.layers import COLOURS
from adadfq_jax.models.network import Network, Teacher, unflatten
from adadfq_jax.models.preparation import USUAL
from adadfq_jax.storage.files import locate, readable
from adadfq_jax.teachers import kinds, native, state_dicts, to_flax
from adadfq_jax.teachers.recognition import Recognised, recognise
from adadfq_jax.teachers.stated import Stated

_LISTED = 3
# Of `resnet20.pth.tar`, the last one; a file's first bytes say what it is.
_SUFFIXES = (".safetensors", ".pth", ".pt", ".th", ".tar", ".ckpt", ".bin")


def load_teacher(
    path: str | Path,
    architecture: str | None = None,
    *,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    image_size: int | None = None,
    entry: str | None = None,
    prefix: str | None = None,
    pixel_units: int = 1,
) -> Teacher:
    """Reads a teacher.

    Network, classes, shortcuts and naming are recognised from the file. What a PyTorch file cannot
    tell has to be given: the normalisation; the image size, except for the networks `*_cifar`,
    which are by definition for 32x32 pixels; and `architecture` where two networks have the same
    variables (where a bottleneck has its stride, whether a max-pool follows a 3x3 stem, what
    shortcuts of option A do, which strides a MobileNetV2 has). What no such file says and nobody
    asks is taken to be as in the original networks: the strides of a ResNet's stages, BatchNorm's
    epsilon of 1e-5.

    Args:
      path: a PyTorch checkpoint (`.pth`, `.pt`, `.th`, `.tar`, `.ckpt`, `.bin`; needs torch, and
        never executes what the file contains), a `.safetensors` file of a PyTorch state dict, or
        this project's own one, which says all of the following itself.
      architecture: a name of `registry.ARCHITECTURES`; must agree with what is recognised.
      mean, std: normalisation per channel, in `pixel_units`.
      image_size: side of the images in pixels.
      entry: which entry of a PyTorch checkpoint holds the weights; by default the first known one
        (`state_dict`, `model`, `net`, ...), and a moving average (`state_dict_ema`) before others;
        of an entry in another, `model.module`.
      prefix: what stands before the names of the network's weights, such as `backbone`; by default,
        what stands before those of its blocks.
      pixel_units: 1 for mean and std of pixels in [0, 1]; 255 for those of pixels from 0 to 255,
        which are divided by 255 once.

    Raises:
      TeacherError: the file is missing, damaged, of another network, or does not say enough, or
        mean and std cannot be in their units.
      ConfigError: `architecture` is unknown.
    """
    return read_teacher(
        path, Stated(architecture, mean, std, image_size, entry, prefix, pixel_units=pixel_units)
    )


def read_teacher(path: str | Path, stated: Stated) -> Teacher:
    """As `load_teacher`, with everything that is stated in one piece."""
    with teacher_file(path) as file:
        if kinds.kind_of(file) == kinds.SAFETENSORS and native.is_own(file):
            return _load_own(file, stated)
        return load_foreign(file, stated)


@contextlib.contextmanager
def teacher_file(path: str | Path) -> Iterator[Path]:
    """Yields a teacher's file on a disk, wherever it lies.

    Raises:
      TeacherError: there is none, or it is no such file by its suffix.
    """
    where = locate(path)
    with readable(where) as file:
        if file.is_dir():
            raise TeacherError(f"{str(where)!r} is a folder; name the teacher's file in it.")
        if not file.is_file():
            raise TeacherError(f"there is no teacher file {str(where)!r}.")
        if file.suffix.lower() not in _SUFFIXES:
            raise TeacherError(
                f"{str(file)!r} is not a teacher file: expected one of {', '.join(_SUFFIXES)}."
            )
        yield file


def save_teacher(teacher: Network, path: str | Path) -> None:
    """Writes a teacher as this project's own file; the same teacher gives the same bytes.

    Raises:
      TeacherError: the file cannot be written.
    """
    source, keys = (getattr(teacher, name, None) for name in ("source", "keys"))
    native.write_native(teacher, locate(path), source, keys)


def teacher_of(config: ml_collections.ConfigDict) -> Teacher:
    """Reads the teacher that a configuration names.

    Raises:
      ConfigError: it names none.
      TeacherError: it cannot be read.
    """
    if config.teacher.path is None:
        raise ConfigError(
            "there is no teacher: give one with --config.teacher.path=FILE, or as the argument "
            "`teacher` of quantize()."
        )
    return read_teacher(
        config.teacher.path,
        Stated(
            config.teacher.architecture,
            config.data.mean,
            config.data.std,
            config.teacher.image_size or None,
        ),
    )


def load_foreign(path: Path, stated: Stated) -> Teacher:
    """Reads a PyTorch state dict from a file of any name; see `load_teacher`.

    Warns of what is in the file and was not read.
    """
    name = repr(str(path))
    state = state_dicts.read_state(path, stated.entry, stated.prefix)
    recognised = _recognise(name, state, stated.architecture)
    likely = stated.architecture or recognised.architectures[0]
    # Whichever it is, the variables are the same: damage is reported before questions.
    variables = to_flax.fit_state_dict(name, state.arrays, recognised, likely)
    stated = stated.or_else(image_size=registry.default_image_size(likely))
    _require_answers(name, recognised, stated)
    stated = stated.of_channels(name, COLOURS)
    convention = f"{recognised.convention.name} keys"
    if state.entry:
        convention += f", of the entry {state.entry!r}"
    if state.prefix:
        convention += f", after {state.prefix!r}"
    if state.head:
        convention += f", classifier {state.head!r}"
    _warn_of_the_rest(name, state)
    return Teacher(
        architecture=likely,
        module=registry.build(likely, recognised.classes),
        variables=variables,
        image_size=stated.image_size,
        mean=stated.mean,
        std=stated.std,
        preparation=USUAL.changed(**stated.preparation),
        source=hashlib.sha256(path.read_bytes()).hexdigest(),
        convention=convention,
        keys=recognised.convention.code,
    )


def _warn_of_the_rest(name: str, state: state_dicts.State) -> None:
    if state.others:
        warnings.warn(
            f"{name} holds more than one network: {state.entry!r} was taken, --entry="
            f"{state.others[0]} takes another"
            + (f" (there are {', '.join(state.others)})." if len(state.others) > 1 else "."),
            stacklevel=4,
        )
    for what, found in (
        ("keys outside of the network", state.left_over),
        ("objects, which were not read and not executed", state.skipped),
    ):
        if found:
            others = f" and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
            warnings.warn(
                f"{name} also holds {what}: {', '.join(found[:_LISTED])}{others}.", stacklevel=4
            )


def _recognise(name: str, state: state_dicts.State, architecture: str | None) -> Recognised:
    try:
        recognised = recognise({key: array.shape for key, array in state.arrays.items()})
    except TeacherError as error:
        raise TeacherError(f"{name} {error}") from error
    if architecture is not None and architecture not in recognised.architectures:
        raise TeacherError(
            f"{name} looks like {' or '.join(recognised.architectures)} with "
            f"{recognised.classes} classes ({recognised.convention.name} keys), not like "
            f"{architecture}."
        )
    return recognised


def _require_answers(name: str, recognised: Recognised, stated: Stated) -> None:
    """Raises TeacherError that asks for everything the file cannot tell and nobody has stated."""
    asked = []
    candidates = recognised.architectures
    if stated.architecture is None and len(candidates) > 1:
        asked.append(recognised.question)
    if stated.image_size is None:
        asked.append("the size of its images in pixels: give image_size")
    if not stated.mean or not stated.std:
        asked.append(
            "how its images are normalised: give mean and std, a number for each channel "
            "(data.mean and data.std in a configuration)"
        )
    if asked:
        known = f", recognised as {candidates[0]}," if len(candidates) == 1 else ""
        raise TeacherError(f"{name}{known} does not say {'; nor '.join(asked)}.")


def _load_own(path: Path, stated: Stated) -> Teacher:
    if stated.entry is not None or stated.prefix is not None:
        raise TeacherError(
            f"{str(path)!r} is this project's own file: it has neither entries nor prefixes."
        )
    described, arrays = native.read_native(path)
    stated = stated.of_channels(repr(str(path)), len(described["mean"]))
    given = {
        "architecture": stated.architecture,
        "mean": list(stated.mean) or None,
        "std": list(stated.std) or None,
        "image_size": stated.image_size,
    }
    for field, value in given.items():
        if value is not None and value != described[field]:
            raise TeacherError(
                f"{str(path)!r} says {field}={described[field]}, but {value} was asked for."
            )
    return Teacher(
        architecture=described["architecture"],
        module=described["module"],
        variables=unflatten(arrays),
        image_size=described["image_size"],
        mean=tuple(described["mean"]),
        std=tuple(described["std"]),
        preparation=described["preparation"].changed(**stated.preparation),
        source=described.get("source"),
        keys=described.get("keys"),
    )
