"""Scikit-learn's 8x8 digits, a few hundred of them, as every example reads them."""

import functools

import numpy as np
from sklearn import datasets

_NUM_TRAIN, _NUM_VALID = 112, 40


@functools.cache
def load() -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
  """Returns (images, labels) to train on and to validate on.

  Images are gray values in [0, 1] of shape [N, 8, 8, 1], labels are integers of shape [N].
  """
  data = datasets.load_digits()
  images = (data.images[..., np.newaxis] / 16).astype("float32")
  labels = data.target.astype("int32")
  train, valid = slice(_NUM_TRAIN), slice(_NUM_TRAIN, _NUM_TRAIN + _NUM_VALID)
  return (images[train], labels[train]), (images[valid], labels[valid])
