"""Loads a data set of gray images by its name or from a file; needs no TensorFlow to import."""

import os
import pathlib
from collections.abc import Callable

import numpy as np

from dregs_tf.data import array_files, sequences
from dregs_tf.data.images import DataError, Images

_DIGITS_SPLIT_SEED = 20181004
_DIGITS_NUM_VALID = 250
_DIGITS_NUM_TEST = 250


def _digits(data_dir: str | os.PathLike | None) -> Images:
  """Reads the 1,797 handwritten digits that are bundled with scikit-learn."""
  del data_dir  # Bundled with the package: there is no folder to choose.
  from sklearn import datasets

  gray = (datasets.load_digits().data / 16.0).astype(np.float32)
  gray = gray[np.random.RandomState(_DIGITS_SPLIT_SEED).permutation(len(gray))]
  num_train = len(gray) - _DIGITS_NUM_VALID - _DIGITS_NUM_TEST
  return Images(
    name="digits",
    description="scikit-learn's bundled 8x8 handwritten digits, fixed random split",
    train=gray[:num_train],
    valid=gray[num_train : num_train + _DIGITS_NUM_VALID],
    test=gray[num_train + _DIGITS_NUM_VALID :],
    image_shape=(8, 8),
  )


def _mnist(data_dir: str | os.PathLike | None) -> Images:
  from dregs_tf.data import tfds_readers  # Imports TensorFlow.

  return tfds_readers.read_mnist(data_dir)


def _omniglot(data_dir: str | os.PathLike | None) -> Images:
  from dregs_tf.data import tfds_readers  # Imports TensorFlow.

  return tfds_readers.read_omniglot(data_dir)


_NAMED: dict[str, Callable[[str | os.PathLike | None], Images]] = {
  "digits": _digits,
  "mnist": _mnist,
  "omniglot": _omniglot,
}

_FILES: dict[str, Callable[[pathlib.Path], Images]] = {
  ".npz": array_files.read_npz,
  ".mat": array_files.read_mat,
}


def names() -> tuple[str, ...]:
  """Returns every name that `load` takes besides a path."""
  return tuple(_NAMED)


def load(name: str | os.PathLike, data_dir: str | os.PathLike | None = None) -> Images:
  """Loads a data set.

  Args:
    name: One of `names()`, or a path to an `.npz` file (see `array_files.read_npz`) or to a
      `.mat` file laid out like Omniglot's `chardata.mat` (see `array_files.read_mat`).
    data_dir: The folder in which TensorFlow Datasets keeps its prepared data, for "mnist" and
      "omniglot". By default the environment variable TFDS_DATA_DIR, and without it
      ~/tensorflow_datasets. The other data sets do not use it.

  Returns:
    The `Images`.

  Raises:
    DataError: if there is no such data set, if it cannot be read or downloaded, or if it does not
      hold such images.
  """
  return _load(name, data_dir, _FILES)


def load_sequences(
  name: str | os.PathLike, data_dir: str | os.PathLike | None = None
) -> sequences.Sequences:
  """Loads a data set of sequences: an .npz file of them, or the rows of images from the top.

  Args:
    name: A path to an `.npz` file (see `sequences.read_npz`), or another argument of `load`.
    data_dir: as `load` takes it.

  Raises:
    DataError: as `load` does.
  """
  found = _load(name, data_dir, _FILES | {".npz": sequences.read_npz})
  return found if isinstance(found, sequences.Sequences) else sequences.of_rows(found)


def _load(name, data_dir, files: dict[str, Callable[[pathlib.Path], Images]]) -> Images:
  """Loads a data set by name, or from a file with the reader for its extension."""
  if not isinstance(name, (str, os.PathLike)):
    raise DataError(f"dataset must be a name or a path, not {name!r}")
  if name in _NAMED:
    return _NAMED[name](data_dir)
  path = pathlib.Path(os.path.expanduser(os.fspath(name)))
  read_file = files.get(path.suffix.lower())
  if read_file is None:
    raise DataError(
      f"unknown dataset {os.fspath(name)!r}: it must be one of {', '.join(_NAMED)}, "
      f"or a path to a file ending in {' or '.join(files)}"
    )
  if path.is_dir():
    raise DataError(f"dataset {path} is a directory, not a file")
  if not path.is_file():
    raise DataError(f"dataset {path}: there is no such file")
  return read_file(path)
