"""Tests of data sets by name and by path, and of the bundled digits."""

import os
import subprocess
import sys

import numpy as np
import pytest

from dregs_tf import data
from tests.data.helpers import error_of, rows


def test_names():
  assert data.names() == ("digits", "mnist", "omniglot")


def test_names_needs_no_tensorflow():
  code = (
    "import sys; from dregs_tf import data; data.names(); "
    "sys.exit(any(name in sys.modules for name in ('tensorflow', 'scipy', 'sklearn')))"
  )
  subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_exports():
  assert set(data.__all__) <= set(dir(data))
  assert all(hasattr(data, name) for name in data.__all__)
  with pytest.raises(AttributeError, match="'nothing'"):
    _ = data.nothing


@pytest.mark.parametrize(
  "name", ["mnits", "MNIST", "", "images.npy", "folder/images", ".npz", None, 3, "a" * 5000]
)
def test_unknown_names(name):
  message = error_of(name)
  if isinstance(name, str):
    assert "one of digits, mnist, omniglot, or a path to a file ending in .npz or .mat" in message
  else:
    assert message == f"dataset must be a name or a path, not {name!r}"


@pytest.mark.parametrize("suffix", [".npz", ".mat"])
def test_paths_that_are_no_file(tmp_path, suffix):
  path = tmp_path / f"images{suffix}"
  assert error_of(path) == f"dataset {path}: there is no such file"
  assert error_of(path / f"x{suffix}") == f"dataset {path / f'x{suffix}'}: there is no such file"
  path.write_bytes(b"")
  assert str(path) in error_of(path)
  path.unlink()
  path.mkdir()
  assert error_of(path) == f"dataset {path} is a directory, not a file"
  path.rmdir()
  os.mkfifo(path)  # It would be waited for, without end.
  assert str(path) in error_of(path)


@pytest.mark.parametrize("suffix", [".npz", ".mat"])
@pytest.mark.parametrize("junk", [b"x", b"junk" * 100, b"PK\x03\x04" + b"\0" * 200, b"\0" * 300])
def test_junk(tmp_path, suffix, junk):
  path = tmp_path / f"images{suffix}"
  path.write_bytes(junk)
  assert str(path) in error_of(path)


def test_digits():
  images = data.load("digits")
  assert images.name == "digits"
  assert images.image_shape == (8, 8)
  assert (len(images.train), len(images.valid), len(images.test)) == (1297, 250, 250)
  everything = np.concatenate([images.train, images.valid, images.test])
  assert everything.dtype == np.float32
  assert (everything.min(), everything.max()) == (0, 1)
  from sklearn import datasets

  assert rows(everything * 16) == rows(datasets.load_digits().data)


def test_digits_are_split_in_the_same_way_each_time():
  for _ in range(2):
    np.random.seed()
    np.testing.assert_array_equal(data.load("digits").test, data.load("digits", "ignored").test)


def test_mean_is_that_of_the_training_images():
  images = data.load("digits")
  assert images.mean.shape == (64,)
  assert images.mean.dtype == np.float32
  np.testing.assert_allclose(images.mean, images.train.mean(axis=0), rtol=1e-5)
  assert images.mean is images.mean
