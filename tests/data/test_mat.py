"""Tests of images in .mat files laid out like Omniglot's chardata.mat."""

import re

import numpy as np
import pytest
import scipy.sparse

from dregs_tf import data
from tests.data.helpers import error_of, gray, save_mat


def _reference_chardata(matrix):
  """The reading of chardata.mat in the code that it comes with, as numpy calls."""
  side = int(np.sqrt(len(matrix)))
  return matrix.T.reshape(-1, side, side).reshape((-1, side * side), order="F")


def test_mat(tmp_path):
  matrix, test = gray(16, 40), gray(16, 6, seed=1)
  images = data.load(save_mat(tmp_path, data=matrix, testdata=test, target=np.zeros([3, 3])))
  assert images.name == "images"
  assert images.image_shape == (4, 4)
  train = _reference_chardata(matrix)[np.random.RandomState(123).permutation(40)]
  np.testing.assert_array_equal(images.train, train[:36])
  np.testing.assert_array_equal(images.valid, train[36:])
  np.testing.assert_array_equal(images.test, _reference_chardata(test))
  assert images.train.dtype == images.test.dtype == np.float32


def test_mat_images_are_transposed(tmp_path):
  image = np.float32([[0.1, 0.2], [0.3, 0.4]])
  column = image.reshape(4, 1, order="F")
  images = data.load(save_mat(tmp_path, data=np.tile(column, [1, 5]), testdata=column))
  for split in (images.train, images.valid, images.test):
    np.testing.assert_array_equal(split[0].reshape(2, 2), image)


def test_mat_holds_out_as_many_images_as_the_original_code(tmp_path):
  images = data.load(save_mat(tmp_path, data=gray(1, 24345), testdata=gray(1, 8070)))
  assert (len(images.train), len(images.valid), len(images.test)) == (23000, 1345, 8070)


def test_mat_of_doubles_that_are_whole_numbers(tmp_path):
  # MATLAB writes these as small integers.
  binary = (gray(4, 20) > 0.5).astype(np.float64)
  images = data.load(save_mat(tmp_path, data=binary, testdata=binary))
  np.testing.assert_array_equal(images.test, _reference_chardata(binary))


@pytest.mark.parametrize(
  "matrices, message",
  [
    ({"testdata": gray(4, 5)}, "{path} has no matrix 'data'; needed are data and testdata"),
    ({"data": gray(4, 5)}, "{path} has no matrix 'testdata'; needed are data and testdata"),
    ({"data": gray(5, 4), "testdata": gray(5, 4)}, "'data' of {path} has 5 rows; a square"),
    ({"data": gray(4, 5), "testdata": gray(9, 5)}, "are 2x2, those of 'testdata' 3x3"),
    ({"data": gray(4, 1), "testdata": gray(4, 1)}, "'data' holds 1 image; a train and a"),
    ({"data": np.zeros([4, 0]), "testdata": gray(4, 1)}, "has shape (4, 0); it must be"),
    ({"data": np.zeros([4, 3, 2]), "testdata": gray(4, 1)}, "has shape (4, 3, 2); it must be"),
    ({"data": gray(4, 5), "testdata": gray(4, 5) + 3}, "'testdata' of {path} holds values from"),
    ({"data": gray(4, 5) * np.nan, "testdata": gray(4, 5)}, "holds NaN or infinite values"),
    (
      {"data": np.array([[{}] * 4] * 4), "testdata": gray(4, 5)},
      "{path} is no matrix of numbers",
    ),
    (
      {"data": scipy.sparse.eye(4), "testdata": gray(4, 5)},
      "'data' of {path} is sparse; store it as a full",
    ),
    ({"data": "text", "testdata": gray(4, 5)}, "'data' of {path}"),
  ],
)
def test_bad_mat(tmp_path, matrices, message):
  path = save_mat(tmp_path, **matrices)
  assert message.replace("{path}", str(path)) in error_of(path)


def test_truncated_mat(tmp_path):
  whole = save_mat(tmp_path, data=gray(16, 40), testdata=gray(16, 6)).read_bytes()
  path = tmp_path / "cut.mat"
  for size in range(1, len(whole) - 8, 263):
    path.write_bytes(whole[:size])
    assert re.search(r"cut\.mat (cannot be read as a \.mat file: |has no matrix )", error_of(path))
