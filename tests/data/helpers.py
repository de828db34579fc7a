"""Images to store, files of them, and the messages on those that cannot be read."""

import numpy as np
import pytest
import scipy.io

from dregs_tf import data


def gray(*shape, seed=0):
  return np.random.RandomState(seed).uniform(size=shape).astype(np.float32)


def save_npz(tmp_path, **arrays):
  path = tmp_path / "images.npz"
  np.savez(path, **arrays)
  return path


def save_mat(tmp_path, **matrices):
  path = tmp_path / "images.mat"
  scipy.io.savemat(path, matrices)
  return path


def error_of(name):
  with pytest.raises(data.DataError) as caught:
    data.load(name)
  message = str(caught.value)
  assert "\n" not in message
  return message


def rows(images):
  return sorted(map(tuple, images.tolist()))


def loads_or_says_why(path, content, load=data.load):
  path.write_bytes(content)
  try:
    images = load(path)
  except data.DataError as error:
    assert str(path) in str(error)
    assert "\n" not in str(error)
  else:
    assert np.isfinite(images.train).all()
    assert images.train.shape[1] == np.prod(images.image_shape)
