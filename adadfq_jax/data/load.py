"""Opens an evaluation set by its source.

none         no evaluation set
npz          a file with `x`, uint8 (N, H, W, channels) or (N, H, W), and `y`, integers (N,)
folder       image files CLASS/NAME.jpg, of any format that Pillow decodes, also in folders below;
             classes are numbered in the order of their names, or as a file of labels says
tfds:NAME    a data set of tensorflow-datasets, prepared once with launch/prepare_data.sh
"""

from pathlib import Path

from adadfq_jax.data.dataset import Dataset
from adadfq_jax.errors import DataError
from adadfq_jax.storage.files import on_a_disk

_TFDS = "tfds:"


def load_dataset(
    source: str, path: str | Path | None = None, labels: str | Path | None = None
) -> Dataset | None:
    """Opens an evaluation set.

    Args:
      source: "none", "npz", "folder" or "tfds:NAME", with NAME as tensorflow-datasets takes it
        (`cifar10`, `name/config`).
      path: the file, the folder, or tensorflow-datasets' `data_dir` (None for its default).
      labels: for a folder, a file that says which class folder is which class.

    Returns:
      The set, or None for "none".

    Raises:
      DataError: the set cannot be read.
      ConfigError: the set is not on a disk.
    """
    if labels is not None and source != "folder":
        raise DataError(f"labels say which class a folder is, and {source!r} is no image folder.")
    if source == "none":
        return None
    # Each source is imported when it is used, since some of them import large libraries.
    if source.startswith(_TFDS):
        from adadfq_jax.data.tfds import load_tfds

        return load_tfds(source.removeprefix(_TFDS), path)
    if source not in ("npz", "folder"):
        raise DataError(f"unknown data source {source!r}; known: none, npz, folder, tfds:NAME.")
    if path is None:
        raise DataError(f"the data source {source!r} needs a path.")
    if source == "npz":
        from adadfq_jax.data.npz import load_npz

        return load_npz(on_a_disk(path))
    from adadfq_jax.data.folder import load_folder

    return load_folder(on_a_disk(path), None if labels is None else on_a_disk(labels))
