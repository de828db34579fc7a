"""Tests of sequences in .npz files, of rows of images, and of their batches."""

import numpy as np
import pytest

from dregs_tf import data
from tests.data.helpers import gray, loads_or_says_why, save_npz

T, D = 4, 3
X = np.random.default_rng(0).normal(size=[6, T, D])
LENGTHS = np.array([4, 1, 3, 2, 4, 3])


def padded(x, lengths, value):
  return np.where(
    np.arange(x.shape[1])[:, np.newaxis] < lengths[:, np.newaxis, np.newaxis], x, value
  )


def test_real_sequences_with_lengths(tmp_path):
  train = padded(X, LENGTHS, np.nan)
  arrays = {"train": train, "valid": X[:1], "test": X[1:3].astype(np.float16)}
  found = data.load_sequences(save_npz(tmp_path, train_lengths=LENGTHS, **arrays))
  assert (found.image_shape, found.is_gray, found.likelihood) == ((T, D), False, "normal")
  expected = padded(X, LENGTHS, 0).astype(np.float32)
  np.testing.assert_array_equal(found.train, expected.reshape(6, T * D))
  np.testing.assert_array_equal(found.test, arrays["test"].reshape(2, -1).astype(np.float32))
  assert {split: list(each) for split, each in found.lengths.items()} == {
    "train": list(LENGTHS),
    "valid": [T],
    "test": [T, T],
  }
  np.testing.assert_allclose(found.step_mean, np.nanmean(train, axis=(0, 1)), rtol=1e-6)


@pytest.mark.parametrize("dtype, largest", [("uint8", 255), ("bool", 1), ("float32", 1)])
def test_numbers_in_the_unit_interval_are_gray(tmp_path, dtype, largest):
  train = np.round(gray(5, T, D) * largest).astype(dtype)
  found = data.load_sequences(save_npz(tmp_path, train=train, valid=train, test=train))
  assert (found.lengths, found.likelihood) == (None, "bernoulli")
  np.testing.assert_allclose(found.test, train.reshape(5, -1) / largest, rtol=1e-6)
  np.testing.assert_allclose(found.step_mean, train.mean(axis=(0, 1)) / largest, rtol=1e-6)


def test_missing_splits_take_their_lengths_along(tmp_path):
  lengths = np.tile(np.arange(1, T + 1), 5)
  train = np.broadcast_to(lengths[:, np.newaxis, np.newaxis], [20, T, 1]) * 1.0
  found = data.load_sequences(save_npz(tmp_path, train=train, train_lengths=lengths))
  for split, size in (("train", 16), ("valid", 2), ("test", 2)):
    first_numbers = getattr(found, split)[:, 0]
    assert len(first_numbers) == size
    np.testing.assert_array_equal(first_numbers, found.lengths[split])


def test_rows_of_images():
  images, found = data.load("digits"), data.load_sequences("digits")
  np.testing.assert_array_equal(found.valid, images.valid)
  assert (found.image_shape, found.lengths, found.is_gray) == ((8, 8), None, True)
  by_row = images.train.reshape(-1, 8)
  np.testing.assert_allclose(found.step_mean, by_row.mean(axis=0), rtol=1e-5)


@pytest.mark.parametrize(
  "arrays, words",
  [
    ({"x": X}, ["no array 'train'", "train_lengths"]),
    ({"train": X[0]}, ["'train'", "(4, 3)", "[N, T, D]"]),
    ({"train": X[:, :1]}, ["'train'", "(6, 1, 3)", "at least 2"]),
    ({"train": X[:0]}, ["'train'", "(0, 4, 3)", "not empty"]),
    ({"train": X, "test": X[:, :3]}, ["'test'", "(6, 3, 3)", "4 steps of 3 numbers"]),
    ({"train": X, "train_lengths": LENGTHS[:5]}, ["'train_lengths'", "6 integers", "(5,)"]),
    ({"train": X, "train_lengths": LENGTHS * 1.0}, ["'train_lengths'", "float64", "integers"]),
    ({"train": X, "train_lengths": LENGTHS + 1}, ["'train_lengths'", "1 to 4", "5"]),
    ({"train": X, "train_lengths": LENGTHS - 1}, ["'train_lengths'", "1 to 4"]),
    ({"train": X, "test_lengths": LENGTHS}, ["'test_lengths'", "no array 'test'"]),
    ({"train": padded(X, LENGTHS, np.nan)}, ["'train'", "NaN"]),
    ({"train": X * 1e39}, ["'train'", "beyond float32"]),
    ({"train": np.ones([6, T, D], int)}, ["'train'", "int64", "uint8 (0 to 255)"]),
    ({"train": X[:2]}, ["2 image(s)", "too few"]),
  ],
)
def test_ill_shaped_files_are_refused_in_one_line(tmp_path, arrays, words):
  path = save_npz(tmp_path, **arrays)
  with pytest.raises(data.DataError) as error:
    data.load_sequences(path)
  assert all(word in str(error.value) for word in (str(path), *words))
  assert "\n" not in str(error.value)


def test_damaged_files_are_refused_or_read(tmp_path):
  content = save_npz(tmp_path, train=X, train_lengths=LENGTHS).read_bytes()
  generator = np.random.default_rng(0)
  for i in range(40):
    damaged = bytearray(content[: generator.integers(len(content))] if i % 2 else content)
    for place in generator.integers(len(damaged), size=3) if damaged else ():
      damaged[place] = generator.integers(256)
    loads_or_says_why(tmp_path / "damaged.npz", bytes(damaged), data.load_sequences)


def test_batches_have_the_lengths_of_their_sequences():
  x = np.repeat(LENGTHS.astype(np.float32), T * D).reshape(6, -1) + 0.5
  options = {"image_shape": (T, D), "task": "rows", "dynamic_binarization": False}
  seen = []
  for lengths, batch in data.train_batches(x, 2, 0, num_steps=3, lengths=LENGTHS, **options):
    assert batch.shape == (2, T, D)
    np.testing.assert_array_equal(batch[:, 0, 0], lengths.numpy() + 0.5)
    seen += list(lengths.numpy())
  assert sorted(seen) == sorted(LENGTHS)
  found = list(data.eval_batches(x, 4, lengths=LENGTHS, **options))
  np.testing.assert_array_equal(np.concatenate([lengths for lengths, _ in found]), LENGTHS)
  np.testing.assert_array_equal(np.concatenate([b for _, b in found]), x.reshape(6, T, D))
  for wrong in ({"lengths": LENGTHS[:3]}, {"lengths": LENGTHS, "task": "generative"}):
    with pytest.raises(data.DataError, match="lengths"):
      data.eval_batches(x, 4, **options | wrong)
