"""Defines the result of every reader: a data set of gray images in three splits."""

import dataclasses
import functools

import numpy as np


class DataError(ValueError):
  """Says in one line what is wrong with a data set, a file or an argument."""


@dataclasses.dataclass(frozen=True, eq=False)
class Images:
  """Holds gray images, flattened row by row, split into train, valid and test.

  Attributes:
    name: A short name, suitable for a file name or a plot legend.
    description: One line that says what the images are and how they are split.
    train: A float32 array of shape [num_train, height * width], values in [0, 1]. In every split,
      missing pixels are NaN.
    valid: A float32 array of shape [num_valid, height * width], values in [0, 1].
    test: A float32 array of shape [num_test, height * width], values in [0, 1].
    image_shape: The pair (height, width).
  """

  name: str
  description: str
  train: np.ndarray
  valid: np.ndarray
  test: np.ndarray
  image_shape: tuple[int, int]

  @functools.cached_property
  def mean(self) -> np.ndarray:
    """Returns the gray training mean: a float32 array of shape [height * width].

    It is taken over the images in which a pixel is not missing; 1/2 if it is missing in all.
    """
    # A float32 sum over tens of thousands of images loses digits.
    mean = self.train.mean(axis=0, dtype=np.float64)
    if np.isnan(mean).any():
      is_there = ~np.isnan(self.train)
      total = np.sum(self.train, axis=0, dtype=np.float64, where=is_there)
      count = is_there.sum(axis=0)
      mean = np.where(count, total / np.maximum(count, 1), 0.5)
    return mean.astype(np.float32)


def with_missing(images: Images, fraction: float, seed: int) -> Images:
  """Replaces pixels of the images by NaN, for missing, completely at random.

  An image's missing pixels depend on the seed, its split and its position there, so they are the
  same in every epoch and in a resumed run.

  Args:
    images: Images without missing pixels.
    fraction: The probability that a pixel is missing, in [0, 1).
    seed: An integer of at least 0.

  Raises:
    DataError: if the fraction is not in [0, 1).
  """
  if not 0 <= fraction < 1:
    raise DataError(f"fraction must be in [0, 1), not {fraction!r}")

  def incomplete(gray: np.ndarray, split: int) -> np.ndarray:
    uniform = np.random.default_rng([seed, split]).random(gray.shape, np.float32)
    return np.where(uniform < fraction, np.float32(np.nan), gray)

  return dataclasses.replace(
    images,
    description=f"{images.description}, {fraction:.0%} of the pixels missing",
    train=incomplete(images.train, 0),
    valid=incomplete(images.valid, 1),
    test=incomplete(images.test, 2),
  )


def first_line(error: Exception) -> str:
  """Returns the first line of an error's message, or the error's type if it has none."""
  lines = str(error).strip().splitlines()
  return lines[0][:200] if lines else type(error).__name__
