"""The result of every reader: a data set of gray images in three splits."""

import dataclasses
import functools

import numpy as np


class DataError(ValueError):
  """Says in one line what is wrong with a data set, a file or an argument."""


@dataclasses.dataclass(frozen=True, eq=False)
class Images:
  """Holds gray images, flattened row by row, split into train, valid and test.

  Attributes:
    name: A short name, fit for a file name or a plot legend.
    description: One line that says what the images are and how they are split.
    train: A float32 array of shape [num_train, height * width], values in [0, 1].
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
    """Returns the gray training mean: a float32 array of shape [height * width]."""
    # Summed in float64: float32 loses digits over tens of thousands of images.
    return self.train.mean(axis=0, dtype=np.float64).astype(np.float32)


def first_line(error: Exception) -> str:
  """Returns the first line of an error's message, or the error's type if it has none."""
  lines = str(error).strip().splitlines()
  return lines[0][:200] if lines else type(error).__name__
