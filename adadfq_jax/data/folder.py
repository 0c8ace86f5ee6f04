"""Evaluation sets of image files, with one folder for each class."""

import collections
import itertools
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from adadfq_jax.data.dataset import Dataset, shortened
from adadfq_jax.data.images import SUFFIXES, decode
from adadfq_jax.data.labels import read_labels
from adadfq_jax.errors import DataError

# Files and folders that operating systems leave behind; neither images nor classes.
_OF_SYSTEMS = ("__macosx", "@eadir", "$recycle.bin", "thumbs.db", "desktop.ini")
_SPLITS = ("train", "training", "val", "valid", "validation", "dev", "test", "testing")


class _Files:
    """Random access to decoded image files."""

    def __init__(self, files: list[tuple[str, int]]):
        self._files = files

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        path, label = self._files[index]
        try:
            content = Path(path).read_bytes()
        except OSError as error:
            raise DataError(f"{path!r} cannot be read: {error.strerror}.") from error
        return decode(content, repr(path)), label

    def label(self, index: int) -> int:
        return self._files[index][1]


def load_folder(path: Path, labels: Path | None = None) -> Dataset:
    """Opens the images in class folders, and in the folders below these, as an evaluation set.

    An image is a file with a suffix of `images.SUFFIXES`, in upper or lower case. Hidden files are
    ignored. Other files in class folders, and images outside class folders, are left out with a
    warning.

    Args:
      path: the folder of class folders.
      labels: a file that says which folder is which class, as `read_labels` takes it. Without it,
        classes are numbered in the order of the folders' names, empty folders included. Names are
        compared as text, so `10` comes before `2`; a warning says so.

    Raises:
      DataError: there is no such folder or no image in it, or a folder or the file of labels cannot
        be used.
    """
    if not path.is_dir():
        raise DataError(f"there is no image folder {str(path)!r}.")
    try:
        top = _visible(str(path))
        folders = [entry.name for entry in top if entry.is_dir()]
        above = frozenset([_identity(str(path))])
        by_folder = {name: list(_files_below(str(path / name), above)) for name in folders}
    except OSError as error:
        raise DataError(f"{error.filename!r} cannot be read: {error.strerror}.") from error
    loose = [entry.path for entry in top if entry.name not in folders and _is_image(entry.name)]
    others = [file for files in by_folder.values() for file in files if not _is_image(file)]
    if len(others) == sum(map(len, by_folder.values())):
        raise DataError(
            f"there are no images in {str(path)!r}: expected {path.name or '.'}/CLASS/NAME.jpg or "
            f"another suffix that PIL reads, and found {len(folders)} class folders"
            + (f" with {len(others)} other files ({_suffixes(others)})." if others else ".")
        )
    if labels is not None:
        by_name, class_names = read_labels(labels, folders)
    else:
        _check_names(path, folders)
        by_name, class_names = {name: i for i, name in enumerate(folders)}, tuple(folders)
    if loose:
        warnings.warn(
            f"{_counted(loose, 'image')} in {str(path)!r} itself, in no class folder, left out: "
            f"{_relative(loose, path)}.",
            stacklevel=3,
        )
    if others:
        _warn_of_others(others, path)
    files = [
        (file, by_name[name])
        for name, found in by_folder.items()
        for file in found
        if _is_image(file)
    ]
    found = [label for _, label in files]
    return Dataset(
        str(path) if labels is None else f"{path} with the labels of {labels}",
        _Files(files),
        (min(found), max(found)),
        class_names,
        encoded=True,
        advice=""
        if labels is not None
        else "--labels=FILE, or data.labels, says which folder is which class",
    )


def load_unlabelled_folder(path: Path) -> tuple[Dataset, bool]:
    """Opens the images in a folder and in the folders below it, without labels.

    Images are what `load_folder` takes for some; other files are left out with a warning.

    Args:
      path: the folder.

    Returns:
      (the images, of which each has the label 0; whether the folder has class folders).

    Raises:
      DataError: there is no image in the folder, or it cannot be read.
    """
    try:
        found = list(_files_below(str(path), frozenset()))
    except OSError as error:
        raise DataError(f"{error.filename!r} cannot be read: {error.strerror}.") from error
    images = [file for file in found if _is_image(file)]
    others = [file for file in found if not _is_image(file)]
    if not images:
        raise DataError(
            f"there are no images in {str(path)!r}: expected {path.name or '.'}/NAME.jpg, "
            f"{path.name or '.'}/CLASS/NAME.jpg or another suffix that PIL reads, and found "
            + (f"{len(others)} other files ({_suffixes(others)})." if others else "no files.")
        )
    if others:
        _warn_of_others(others, path)
    records = _Files([(file, 0) for file in images])
    in_class_folders = any(Path(file).parent != path for file in images)
    return Dataset(str(path), records, (0, 0), encoded=True), in_class_folders


def _warn_of_others(others: Sequence[str], path: Path) -> None:
    warnings.warn(
        f"{_counted(others, 'file')} below {str(path)!r}, no images by suffix "
        f"({_suffixes(others)}), left out: {_relative(others, path)}.",
        stacklevel=4,
    )


def _visible(folder: str) -> list[os.DirEntry]:
    with os.scandir(folder) as entries:
        found = [
            entry
            for entry in entries
            if not entry.name.startswith(".") and entry.name.lower() not in _OF_SYSTEMS
        ]
    return sorted(found, key=lambda entry: entry.name)


def _identity(folder: str) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _files_below(folder: str, above: frozenset[tuple[int, int]]) -> Iterator[str]:
    """Yields the paths of all files in a folder and below.

    Args:
      folder: the folder.
      above: device and inode of each folder that contains this one, to find a circle of links.
    """
    identity = _identity(folder)
    if identity in above:
        raise DataError(
            f"{folder!r} is a link to a folder that it lies in, so that its images have no end: "
            "remove the link."
        )
    for entry in _visible(folder):
        if entry.is_dir():
            yield from _files_below(entry.path, above | {identity})
        elif _is_image(entry.name) and not entry.is_file():
            raise DataError(
                f"{entry.path!r} is no file, but "
                + ("a link to nothing." if entry.is_symlink() else "a device or a pipe.")
            )
        else:
            yield entry.path


def _suffix(file: str) -> str:
    return os.path.splitext(file)[1].lower()


def _is_image(file: str) -> bool:
    return _suffix(file) in SUFFIXES


def _check_names(path: Path, folders: Sequence[str]) -> None:
    """Refuses the splits of a data set as classes; warns of an order that is probably not meant."""
    if all(name.lower() in _SPLITS for name in folders):
        raise DataError(
            f"{str(path)!r} holds no class folders, but the parts of a data set "
            f"({shortened(folders)}): give one of them, such as {str(path / folders[-1])!r}."
        )
    for index, (name, folded) in enumerate(
        zip(folders, sorted(folders, key=str.lower), strict=True)
    ):
        if name != folded:
            warnings.warn(
                f"the class folders of {str(path)!r} are in the order of their names as text, "
                f"capitals first as torchvision has them, so that {name!r} is class {index}, and "
                f"not {folded!r}; if that is not the teacher's order, --labels=FILE (data.labels) "
                "says which folder is which class.",
                stacklevel=4,
            )
            return
    # Names with a number after a common prefix: `1` … `10`, `class_1` … `class_10`, `1_cat` ….
    numbered = [re.match(r"(\D*)(\d+)", name) for name in folders]
    if not all(numbered) or len({match[1] for match in numbered}) > 1:
        return
    numbers = [int(match[2]) for match in numbered]
    for index, (number, following) in enumerate(itertools.pairwise(numbers)):
        if following < number:
            warnings.warn(
                f"the class folders of {str(path)!r} are numbered in the order of their names as "
                f"text, so that {folders[index]!r} is class {index} and {folders[index + 1]!r} "
                f"class {index + 1}; if that is not the teacher's order, --labels=FILE "
                "(data.labels) says which folder is which class.",
                stacklevel=4,
            )
            return


def _counted(files: Sequence[str], what: str) -> str:
    return f"1 {what} was" if len(files) == 1 else f"{len(files)} {what}s were"


def _suffixes(files: Iterable[str]) -> str:
    counts = collections.Counter(_suffix(file) or "none" for file in files)
    return shortened([suffix for suffix, _ in counts.most_common()])


def _relative(files: Sequence[str], path: Path) -> str:
    return shortened([os.path.relpath(file, path) for file in files])
