"""Loads data sets of sequences: images read row by row, and .npz files of sequences."""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping

import numpy as np

from dregs_tf.data import array_files
from dregs_tf.data.images import DataError, Images

_LENGTHS = {f"{split}_lengths": split for split in array_files.SPLITS}


@dataclasses.dataclass(frozen=True, eq=False)
class Sequences(Images):
  """Holds sequences of T steps of D numbers as `Images` are held: [N, T * D], image_shape (T, D).

  Attributes:
    lengths: For each split, the number of steps of each sequence, an int32 array [N] of numbers
      from 1 to T; None if all sequences have T steps. Values beyond a sequence's end are 0.
    is_gray: Whether all numbers are in [0, 1]: probabilities of binary observations.
  """

  lengths: Mapping[str, np.ndarray] | None = None
  is_gray: bool = True

  @property
  def likelihood(self) -> str:
    """Returns the kind of likelihood that fits the numbers, the argument of `models.VRNN`."""
    return "bernoulli" if self.is_gray else "normal"

  @functools.cached_property
  def step_mean(self) -> np.ndarray:
    """Returns the training mean over sequences and steps: a float32 array of shape [D]."""
    steps = self.train.reshape(-1, *self.image_shape)
    if self.lengths is not None:
      steps = steps[np.arange(self.image_shape[0]) < self.lengths["train"][:, np.newaxis]]
    return steps.mean(axis=tuple(range(steps.ndim - 1)), dtype=np.float64).astype(np.float32)


def of_rows(images: Images) -> Sequences:
  """Returns images as sequences of their rows, from the top."""
  return Sequences(**{each.name: getattr(images, each.name) for each in dataclasses.fields(Images)})


def read_npz(path: pathlib.Path) -> Sequences:
  """Reads the arrays `train`, `valid` and `test` of an .npz file of sequences, and their lengths.

  Each array has shape [N, T, D] with the same T, at least 2, and D, and is floating point, bool, or
  uint8 (0 to 255, read as gray values). `train_lengths`, `valid_lengths` and `test_lengths` hold
  integers [N] from 1 to T; without them sequences have T steps. Numbers beyond a sequence's end and
  other arrays are ignored. Missing splits are cut from `train`, as for images.

  Args:
    path: The file.

  Returns:
    The `Sequences`.

  Raises:
    DataError: if the file cannot be read or does not hold such arrays.
  """
  arrays = array_files.read_npz_arrays(path, (*array_files.SPLITS, *_LENGTHS))
  if "train" not in arrays:
    allowed = ", ".join((*array_files.SPLITS, *_LENGTHS))
    raise DataError(f"{path} has no array 'train'; allowed are {allowed}")
  shape = arrays["train"].shape[1:]
  splits, lengths = {}, {}
  for split in array_files.SPLITS:
    if split in arrays:
      _check_shape(arrays[split], shape, f"array {split!r} of {path}")
      full = np.full(len(arrays[split]), shape[0], np.int32)
      lengths[split] = _checked_lengths(arrays.get(f"{split}_lengths", full), full, split, path)
      splits[split] = _numbers(arrays[split], lengths[split], f"array {split!r} of {path}")
  for name, split in _LENGTHS.items():
    if name in arrays and split not in arrays:
      raise DataError(f"{path} has an array {name!r}, but no array {split!r}")
  missing = [split for split in ("valid", "test") if split not in splits]
  how_split = "split as in the file"
  if missing:
    how_split = f"fixed random {' and '.join(missing)} split"
    splits, lengths = (array_files.cut_missing(each, missing, path) for each in (splits, lengths))
  is_gray = all(array.min() >= 0 and array.max() <= 1 for array in splits.values())
  kind = "numbers in [0, 1]" if is_gray else "real numbers"
  num_steps, size = shape
  return Sequences(
    name=path.stem,
    description=f"sequences of {path.name}, T = {num_steps}, D = {size}, {kind}, {how_split}",
    image_shape=(num_steps, size),
    lengths=lengths if any(name in arrays for name in _LENGTHS) else None,
    is_gray=is_gray,
    **splits,
  )


def _check_shape(array: np.ndarray, steps_and_size: tuple[int, ...], where: str) -> None:
  """Raises a DataError unless the array holds sequences of this shape (steps, numbers per step)."""
  if array.ndim != 3 or array.size == 0 or array.shape[1] < 2:
    raise DataError(
      f"{where} has shape {array.shape}; sequences are [N, T, D], with T of at least 2, not empty"
    )
  if array.shape[1:] != steps_and_size:
    raise DataError(
      f"{where} has shape {array.shape}; 'train' has {steps_and_size[0]} steps of "
      f"{steps_and_size[1]} numbers, and all splits must have the same"
    )


def _checked_lengths(
  lengths: np.ndarray, full: np.ndarray, split: str, path: pathlib.Path
) -> np.ndarray:
  """Returns lengths as int32; raises a DataError unless they are from 1 to those of `full`."""
  num_steps = full[0]
  is_right = lengths.shape == full.shape and lengths.dtype.kind in "iu"
  if not (is_right and lengths.min() >= 1 and lengths.max() <= num_steps):
    up_to = f", up to {lengths.max()}" if lengths.size and lengths.dtype.kind in "iu" else ""
    raise DataError(
      f"array '{split}_lengths' of {path} must hold {len(full)} integers from 1 to {num_steps}, a "
      f"number of steps for each sequence, not {lengths.dtype} of shape {lengths.shape}{up_to}"
    )
  return lengths.astype(np.int32)


def _numbers(array: np.ndarray, lengths: np.ndarray, where: str) -> np.ndarray:
  """Returns sequences as float32 [N, T * D], with 0 beyond their ends."""
  is_there = np.arange(array.shape[1]) < lengths[:, np.newaxis]
  array = np.where(is_there[..., np.newaxis], array, array.dtype.type(0))
  if array.dtype.kind == "f":
    with np.errstate(over="ignore"):
      array = array.astype(np.float32)
    if not np.isfinite(array).all():
      raise DataError(f"{where} holds values that are NaN, infinite or beyond float32")
  else:
    array = array_files.to_gray(array, where)
  return array.reshape(len(array), -1)
