"""Tests of the readers that need neither TensorFlow nor prepared data, and of their error lines."""

import io
import os
import re
import subprocess
import sys
import zipfile

import hypothesis
import numpy as np
import pytest
import scipy.io
import scipy.sparse
from hypothesis import strategies as st

from dregs_tf import data
from dregs_tf.data import mat_file


def _grey(*shape, seed=0):
  return np.random.RandomState(seed).uniform(size=shape).astype(np.float32)


def _npz(tmp_path, **arrays):
  path = tmp_path / "images.npz"
  np.savez(path, **arrays)
  return path


def _mat(tmp_path, **matrices):
  path = tmp_path / "images.mat"
  scipy.io.savemat(path, matrices)
  return path


def _error_of(name):
  with pytest.raises(data.DataError) as caught:
    data.load(name)
  message = str(caught.value)
  assert "\n" not in message
  return message


def _rows(images):
  return sorted(map(tuple, images.tolist()))


# Names.


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
  message = _error_of(name)
  if isinstance(name, str):
    assert "one of digits, mnist, omniglot, or a path to a file ending in .npz or .mat" in message
  else:
    assert message == f"dataset must be a name or a path, not {name!r}"


@pytest.mark.parametrize("suffix", [".npz", ".mat"])
def test_paths_that_are_no_file(tmp_path, suffix):
  path = tmp_path / f"images{suffix}"
  assert _error_of(path) == f"dataset {path}: there is no such file"
  assert _error_of(path / f"x{suffix}") == f"dataset {path / f'x{suffix}'}: there is no such file"
  path.write_bytes(b"")
  assert _error_of(str(path)) == f"dataset {path} is an empty file"
  assert "there is no such file" in _error_of(path / f"x{suffix}")
  path.unlink()
  path.mkdir()
  assert _error_of(path) == f"dataset {path} is a directory, not a file"
  path.rmdir()
  os.mkfifo(path)
  assert _error_of(path) == f"dataset {path} is not a regular file"
  assert "embedded null byte" in _error_of(f"a\0{suffix}")
  assert "cannot be opened: File name too long" in _error_of("a" * 5000 + suffix)


@pytest.mark.parametrize("suffix", [".npz", ".mat"])
@pytest.mark.parametrize("junk", [b"x", b"junk" * 100, b"PK\x03\x04" + b"\0" * 200, b"\0" * 300])
def test_junk(tmp_path, suffix, junk):
  path = tmp_path / f"images{suffix}"
  path.write_bytes(junk)
  assert str(path) in _error_of(path)


# Digits.


def test_digits():
  images = data.load("digits")
  assert images.name == "digits"
  assert images.image_shape == (8, 8)
  assert (len(images.train), len(images.valid), len(images.test)) == (1297, 250, 250)
  everything = np.concatenate([images.train, images.valid, images.test])
  assert everything.dtype == np.float32
  assert (everything.min(), everything.max()) == (0, 1)
  from sklearn import datasets

  assert _rows(everything * 16) == _rows(datasets.load_digits().data)


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


# Arrays in an .npz file.


def test_npz_with_all_splits(tmp_path):
  arrays = {
    "train": _grey(5, 4, 3),
    "valid": _grey(2, 4, 3, seed=1),
    "test": _grey(1, 4, 3, seed=2),
  }
  images = data.load(_npz(tmp_path, **arrays, labels=np.arange(5)))
  assert images.name == "images"
  assert images.image_shape == (4, 3)
  for split, array in arrays.items():
    loaded = getattr(images, split)
    assert loaded.dtype == np.float32
    np.testing.assert_array_equal(loaded, array.reshape(-1, 12))


@pytest.mark.parametrize("shape", [(7, 4, 4), (7, 4, 4, 1), (7, 16)])
@pytest.mark.parametrize(
  "dtype, largest", [("uint8", 255), ("bool", 1), ("float16", 1), ("float32", 1), (">f8", 1)]
)
def test_npz_shapes_and_types(tmp_path, shape, dtype, largest):
  train = (np.round(_grey(*shape) * largest)).astype(dtype)
  images = data.load(_npz(tmp_path, train=train, valid=train, test=train))
  assert images.image_shape == (4, 4)
  assert images.train.dtype == np.float32
  assert images.train.max() <= 1
  expected = train.reshape(7, 16).astype(np.float64) / largest
  np.testing.assert_allclose(images.train, expected, rtol=1e-6)


def test_npz_image_shape(tmp_path):
  images = data.load(_npz(tmp_path, train=_grey(20, 6), image_shape=np.array([2, 3])))
  assert images.image_shape == (2, 3)


def test_npz_compressed_and_in_fortran_order(tmp_path):
  train = np.asfortranarray(_grey(20, 4, 3))
  np.savez_compressed(tmp_path / "x.NPZ.npz", train=train, test=train)
  images = data.load(tmp_path / "x.NPZ.npz")
  np.testing.assert_array_equal(images.test, train.reshape(20, 12))


@pytest.mark.parametrize(
  "given, sizes",
  [
    ((), (80, 10, 10)),
    (("valid",), (90, 3, 10)),
    (("test",), (90, 10, 3)),
    (("valid", "test"), (100, 3, 3)),
  ],
)
def test_npz_missing_splits_are_cut_from_train(tmp_path, given, sizes):
  train = _grey(100, 4)
  path = _npz(tmp_path, train=train, **{split: _grey(3, 4, seed=1) for split in given})
  images = data.load(path)
  assert (len(images.train), len(images.valid), len(images.test)) == sizes
  cut = [getattr(images, split) for split in ("train", "valid", "test") if split not in given]
  assert _rows(np.concatenate(cut)) == _rows(train)
  np.testing.assert_array_equal(images.train, data.load(path).train)


def test_npz_of_three_images_can_still_be_split(tmp_path):
  images = data.load(_npz(tmp_path, train=_grey(3, 4)))
  assert (len(images.train), len(images.valid), len(images.test)) == (1, 1, 1)


_GOOD = _grey(10, 2, 2)


@pytest.mark.parametrize(
  "arrays, message",
  [
    ({"x_train": _GOOD}, "has no array 'train'; allowed are train, valid, test, image_shape"),
    ({"train": _GOOD[:2]}, "'train' holds 2 image(s), too few to cut valid and test from"),
    ({"train": _GOOD[:1], "test": _GOOD}, "'train' holds 1 image(s), too few to cut valid from"),
    ({"train": _GOOD[:0]}, "array 'train' of {path} has shape (0, 2, 2): it holds no image"),
    ({"train": _GOOD[:, :0]}, "has shape (10, 0, 2): it holds no image"),
    ({"train": _GOOD, "test": _GOOD[:0]}, "array 'test' of {path} has shape (0, 2, 2): it holds"),
    ({"train": _GOOD[0, 0]}, "array 'train' of {path} has shape (2,); allowed are [N, H, W]"),
    ({"train": np.float32(0)}, "has shape (); allowed are [N, H, W], [N, H, W, 1], [N, D]"),
    ({"train": _grey(5, 2, 2, 3)}, "has shape (5, 2, 2, 3); allowed are"),
    ({"train": _grey(5, 2, 2, 1, 1)}, "has shape (5, 2, 2, 1, 1); allowed are"),
    ({"train": _grey(5, 7)}, "has images of 7 pixels, which is no square; say their height"),
    ({"train": _GOOD, "valid": _grey(3, 2, 3)}, "images of 2x3 where 2x2 were expected"),
    ({"train": _GOOD, "test": _grey(3, 9)}, "images of 9 pixels where 2x2 were expected"),
    ({"train": _GOOD, "image_shape": np.array([4, 1])}, "of 2x2 where 4x1 were expected"),
    ({"train": _grey(9, 6), "image_shape": np.array([2, 2])}, "6 pixels where 2x2 were expected"),
    ({"train": _GOOD, "image_shape": np.array([0, 4])}, "'image_shape' of {path} must hold 2 pos"),
    ({"train": _GOOD, "image_shape": np.array([2.0, 2.0])}, "must hold 2 positive integers"),
    ({"train": _GOOD, "image_shape": np.array([2, 2, 1])}, "must hold 2 positive integers"),
    ({"train": _GOOD * 255}, "in [0, 1]"),
    ({"train": _GOOD * np.float32(2) - 1}, "in [0, 1]"),
    ({"train": _GOOD, "test": _GOOD + 5}, "array 'test' of {path} holds values from 5.01"),
    ({"train": np.where(_GOOD > 0.5, np.nan, _GOOD)}, "holds NaN or infinite values"),
    ({"train": np.where(_GOOD > 0.5, np.inf, _GOOD)}, "holds NaN or infinite values"),
    ({"train": (_GOOD * 255).astype(int)}, "is int64; allowed are uint8 (0 to 255), bool, and"),
    ({"train": (_GOOD * 255).astype(np.int8)}, "is int8; allowed are uint8"),
    ({"train": _GOOD.astype(complex)}, "is complex128; allowed are uint8"),
    ({"train": _GOOD.astype(str)}, "allowed are uint8"),
    ({"train": (_GOOD > 0.5).astype(np.uint8)}, "holds only 0 and 1; store it as bool"),
    ({"train": _GOOD.astype(object)}, "array 'train' of {path} holds Python objects"),
  ],
)
def test_bad_npz(tmp_path, arrays, message):
  path = _npz(tmp_path, **arrays)
  found = _error_of(path)
  assert message.replace("{path}", str(path)) in found
  assert str(path) in found


class _Bomb:
  """An object whose unpickling would be noticed."""

  def __reduce__(self):
    return pytest.fail, ("a pickle was loaded",)


def test_npz_never_unpickles(tmp_path):
  bomb = np.array([_Bomb()], object)
  assert "holds Python objects" in _error_of(_npz(tmp_path, train=bomb))
  assert "holds Python objects" in _error_of(_npz(tmp_path, train=_GOOD, test=bomb))
  assert len(data.load(_npz(tmp_path, train=_GOOD, labels=bomb)).train) == 8


def test_npz_that_is_an_npy(tmp_path):
  path = tmp_path / "images.npz"
  with path.open("wb") as file:
    np.save(file, _GOOD)
  assert (
    _error_of(path) == f"{path} is not a whole .npz file: it is no zip archive, or was cut short"
  )


def _npz_with_header(path, shape):
  member = io.BytesIO()
  header = {"descr": "<f4", "fortran_order": False, "shape": shape}
  np.lib.format.write_array_header_1_0(member, header)
  with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
    archive.writestr("train.npy", member.getvalue() + b"\0" * 400)


@pytest.mark.parametrize("shape", [(10**12, 28, 28), (10**30, 2), (10**6, 784)])
def test_npz_that_declares_more_than_it_holds(tmp_path, shape):
  path = tmp_path / "images.npz"
  _npz_with_header(path, shape)
  assert f"declares the shape {shape}, more than the file can hold" in _error_of(path)


@pytest.mark.parametrize("shape", [(11, 10), (-5, 4), (200, 5)])
def test_npz_with_a_wrong_header(tmp_path, shape):
  path = tmp_path / "images.npz"
  _npz_with_header(path, shape)
  assert str(path) in _error_of(path)


def test_truncated_npz(tmp_path):
  whole = _npz(tmp_path, train=_grey(50, 4, 4)).read_bytes()
  path = tmp_path / "cut.npz"
  for size in range(1, len(whole) - 1, 97):
    path.write_bytes(whole[:size])
    assert f"{path} is not a whole .npz file" in _error_of(path)


def _valid_npz_bytes():
  buffer = io.BytesIO()
  np.savez_compressed(buffer, train=(_grey(6, 3, 3) * 255).astype(np.uint8), test=_grey(2, 9))
  return buffer.getvalue()


_VALID_NPZ = _valid_npz_bytes()

_quick = hypothesis.settings(
  max_examples=300,
  derandomize=True,
  deadline=None,
  database=None,
  suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)


def _loads_or_says_why(path, content):
  path.write_bytes(content)
  try:
    images = data.load(path)
  except data.DataError as error:
    assert str(path) in str(error)
    assert "\n" not in str(error)
  else:
    assert np.isfinite(images.train).all()
    assert images.train.shape[1] == np.prod(images.image_shape)


@_quick
@hypothesis.given(content=st.binary(max_size=300), is_zip=st.booleans())
def test_random_bytes_as_npz(tmp_path, content, is_zip):
  if is_zip:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
      archive.writestr("train.npy", b"\x93NUMPY\x01\x00" + content)
    content = buffer.getvalue()
  _loads_or_says_why(tmp_path / "fuzz.npz", content)


@_quick
@hypothesis.given(
  flips=st.lists(
    st.tuples(st.integers(0, len(_VALID_NPZ) - 1), st.integers(1, 255)), min_size=1, max_size=4
  )
)
def test_npz_with_flipped_bits(tmp_path, flips):
  content = bytearray(_VALID_NPZ)
  for position, bits in flips:
    content[position] ^= bits
  _loads_or_says_why(tmp_path / "fuzz.npz", bytes(content))


# Matrices in a .mat file.


def _reference_chardata(matrix):
  """The reading of chardata.mat in the code that it comes with, as numpy calls."""
  side = int(np.sqrt(len(matrix)))
  return matrix.T.reshape(-1, side, side).reshape((-1, side * side), order="F")


def test_mat(tmp_path):
  matrix, test = _grey(16, 40), _grey(16, 6, seed=1)
  images = data.load(_mat(tmp_path, data=matrix, testdata=test, target=np.zeros([3, 3])))
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
  images = data.load(_mat(tmp_path, data=np.tile(column, [1, 5]), testdata=column))
  for split in (images.train, images.valid, images.test):
    np.testing.assert_array_equal(split[0].reshape(2, 2), image)


def test_mat_holds_out_as_many_images_as_the_original_code(tmp_path):
  images = data.load(_mat(tmp_path, data=_grey(1, 24345), testdata=_grey(1, 8070)))
  assert (len(images.train), len(images.valid), len(images.test)) == (23000, 1345, 8070)


def test_mat_of_doubles_that_are_whole_numbers(tmp_path):
  # MATLAB writes these as small integers.
  binary = (_grey(4, 20) > 0.5).astype(np.float64)
  images = data.load(_mat(tmp_path, data=binary, testdata=binary))
  np.testing.assert_array_equal(images.test, _reference_chardata(binary))


@pytest.mark.parametrize(
  "matrices, message",
  [
    ({"testdata": _grey(4, 5)}, "{path} has no matrix 'data'; needed are data and testdata"),
    ({"data": _grey(4, 5)}, "{path} has no matrix 'testdata'; needed are data and testdata"),
    ({"data": _grey(5, 4), "testdata": _grey(5, 4)}, "'data' of {path} has 5 rows; a square"),
    ({"data": _grey(4, 5), "testdata": _grey(9, 5)}, "are 2x2, those of 'testdata' 3x3"),
    ({"data": _grey(4, 1), "testdata": _grey(4, 1)}, "'data' holds 1 image; a train and a"),
    ({"data": np.zeros([4, 0]), "testdata": _grey(4, 1)}, "has shape (4, 0); it must be"),
    ({"data": np.zeros([4, 3, 2]), "testdata": _grey(4, 1)}, "has shape (4, 3, 2); it must be"),
    ({"data": _grey(4, 5), "testdata": _grey(4, 5) + 3}, "'testdata' of {path} holds values from"),
    ({"data": _grey(4, 5) * np.nan, "testdata": _grey(4, 5)}, "holds NaN or infinite values"),
    ({"data": np.array([[{}] * 4] * 4), "testdata": _grey(4, 5)}, "'data' is no matrix of numbers"),
    (
      {"data": scipy.sparse.eye(4), "testdata": _grey(4, 5)},
      "'data' is sparse; store it as a full",
    ),
    ({"data": "text", "testdata": _grey(4, 5)}, "'data' of {path}"),
  ],
)
def test_bad_mat(tmp_path, matrices, message):
  path = _mat(tmp_path, **matrices)
  assert message.replace("{path}", str(path)) in _error_of(path)


def test_truncated_mat(tmp_path):
  whole = _mat(tmp_path, data=_grey(16, 40), testdata=_grey(16, 6)).read_bytes()
  path = tmp_path / "cut.mat"
  for size in range(1, len(whole) - 8, 263):
    path.write_bytes(whole[:size])
    assert re.search(r"cut\.mat (cannot be read as a \.mat file: |has no matrix )", _error_of(path))


def test_mat_that_crashes_its_reader(tmp_path, monkeypatch):
  crashing = tmp_path / "crashing.py"
  crashing.write_text("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
  monkeypatch.setattr(mat_file, "__file__", str(crashing))
  path = _mat(tmp_path, data=_grey(4, 5), testdata=_grey(4, 5))
  assert _error_of(path) == (
    f"{path} cannot be read as a .mat file: scipy's reader was ended by SIGSEGV; "
    "the file is damaged, or too large for the memory"
  )


def test_mat_that_cannot_be_copied(tmp_path, monkeypatch):
  path = _mat(tmp_path, data=_grey(4, 5), testdata=_grey(4, 5))
  (tmp_path / "no_folder").touch()
  message = mat_file._main(str(path), str(tmp_path / "no_folder"), "data")
  assert message.startswith(f"there is no room for a copy in {tmp_path / 'no_folder'}: ")


def test_mat_is_read_without_tensorflow(tmp_path):
  """Whatever the process that asks has loaded, the one that reads has not."""
  path = _mat(tmp_path, data=_grey(4, 5), testdata=_grey(4, 5))
  code = (
    "import atexit, runpy, sys; sys.argv = sys.argv[1:]; "
    "atexit.register(lambda: print('tensorflow' in sys.modules)); "
    "runpy.run_path(sys.argv[0], run_name='__main__')"
  )
  command = [sys.executable, "-c", code, mat_file.__file__, path, tmp_path, "data", "testdata"]
  reader = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
  assert reader.stdout == "False\n"
  np.testing.assert_array_equal(np.load(tmp_path / "data.npy"), _grey(4, 5))


def _valid_mat_bytes():
  buffer = io.BytesIO()
  scipy.io.savemat(buffer, {"data": _grey(4, 20).astype(float), "testdata": _grey(4, 6)})
  return buffer.getvalue()


_VALID_MAT = _valid_mat_bytes()

# The tags of the two matrices, where damage leads scipy astray; elsewhere it changes pixels.
_SECOND_MATRIX = _VALID_MAT.rindex(b"testdata") - 48
_TAGS = [*range(126, 192), *range(_SECOND_MATRIX, _SECOND_MATRIX + 72)]


@hypothesis.example(flips=[(176, 39)])  # scipy 1.17 reads outside of its memory.
@hypothesis.settings(_quick, max_examples=25)  # Each starts a process: a third of a second.
@hypothesis.given(
  flips=st.lists(st.tuples(st.sampled_from(_TAGS), st.integers(1, 255)), min_size=1, max_size=4)
)
def test_mat_with_flipped_bits(tmp_path, flips):
  content = bytearray(_VALID_MAT)
  for position, bits in flips:
    content[position] ^= bits
  _loads_or_says_why(tmp_path / "fuzz.mat", bytes(content))
