"""Prepares a data set of tensorflow-datasets; launch/prepare_data.sh runs this module.

The command line of tensorflow-datasets is not used, because it needs Apache Beam as well.
"""

import argparse
import sys
from pathlib import Path

import tensorflow_datasets as tfds

from adadfq_jax.errors import DataError


def prepare(name: str, data_dir: str | None = None, manual_dir: str | None = None) -> Path:
    """Downloads a data set if needed, and writes it as array_record.

    Args:
      name: the set's name, as `tfds.builder` takes it.
      data_dir: where to write the set; None for the default of tensorflow-datasets.
      manual_dir: a folder of archives that were downloaded by hand, under their original names.

    Returns:
      The folder of the prepared set.

    Raises:
      DataError: the set is unknown, an archive is missing or wrong, or the disk is full.
    """
    try:
        builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(
                manual_dir=manual_dir and Path(manual_dir).expanduser()
            )
        )
    except Exception as error:  # tensorflow-datasets and the libraries below raise many kinds
        reason = " ".join(str(error).split())[:300] or "no reason given"
        raise DataError(f"{name} was not prepared: {type(error).__name__}: {reason}") from error
    return Path(builder.data_dir)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=prepare.__doc__.splitlines()[0])
    parser.add_argument("name")
    parser.add_argument("--data_dir")
    parser.add_argument("--manual_dir")
    try:
        print(prepare(**vars(parser.parse_args())))
    except DataError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
