"""Tests of images in .npz files, whole, wrong and damaged."""

import io
import zipfile

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from dregs_tf import data
from tests.data.helpers import error_of, gray, loads_or_says_why, rows, save_npz


def test_npz_with_all_splits(tmp_path):
  arrays = {
    "train": gray(5, 4, 3),
    "valid": gray(2, 4, 3, seed=1),
    "test": gray(1, 4, 3, seed=2),
  }
  images = data.load(save_npz(tmp_path, **arrays, labels=np.arange(5)))
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
  train = (np.round(gray(*shape) * largest)).astype(dtype)
  images = data.load(save_npz(tmp_path, train=train, valid=train, test=train))
  assert images.image_shape == (4, 4)
  assert images.train.dtype == np.float32
  assert images.train.max() <= 1
  expected = train.reshape(7, 16).astype(np.float64) / largest
  np.testing.assert_allclose(images.train, expected, rtol=1e-6)


def test_npz_image_shape(tmp_path):
  images = data.load(save_npz(tmp_path, train=gray(20, 6), image_shape=np.array([2, 3])))
  assert images.image_shape == (2, 3)


def test_npz_compressed_and_in_fortran_order(tmp_path):
  train = np.asfortranarray(gray(20, 4, 3))
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
  train = gray(100, 4)
  path = save_npz(tmp_path, train=train, **{split: gray(3, 4, seed=1) for split in given})
  images = data.load(path)
  assert (len(images.train), len(images.valid), len(images.test)) == sizes
  cut = [getattr(images, split) for split in ("train", "valid", "test") if split not in given]
  assert rows(np.concatenate(cut)) == rows(train)
  np.testing.assert_array_equal(images.train, data.load(path).train)


def test_npz_of_three_images_can_still_be_split(tmp_path):
  images = data.load(save_npz(tmp_path, train=gray(3, 4)))
  assert (len(images.train), len(images.valid), len(images.test)) == (1, 1, 1)


_GOOD = gray(10, 2, 2)


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
    ({"train": gray(5, 2, 2, 3)}, "has shape (5, 2, 2, 3); allowed are"),
    ({"train": gray(5, 2, 2, 1, 1)}, "has shape (5, 2, 2, 1, 1); allowed are"),
    ({"train": gray(5, 7)}, "has images of 7 pixels, which is no square; say their height"),
    ({"train": _GOOD, "valid": gray(3, 2, 3)}, "images of 2x3 where 2x2 were expected"),
    ({"train": _GOOD, "test": gray(3, 9)}, "images of 9 pixels where 2x2 were expected"),
    ({"train": _GOOD, "image_shape": np.array([4, 1])}, "of 2x2 where 4x1 were expected"),
    ({"train": gray(9, 6), "image_shape": np.array([2, 2])}, "6 pixels where 2x2 were expected"),
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
    ({"train": _GOOD.astype(object)}, "{path} cannot be read as an .npz file: Object arrays"),
  ],
)
def test_bad_npz(tmp_path, arrays, message):
  path = save_npz(tmp_path, **arrays)
  found = error_of(path)
  assert message.replace("{path}", str(path)) in found
  assert str(path) in found


class _Bomb:
  """An object whose unpickling would be noticed."""

  def __reduce__(self):
    return pytest.fail, ("a pickle was loaded",)


def test_npz_never_unpickles(tmp_path):
  bomb = np.array([_Bomb()], object)
  assert "allow_pickle=False" in error_of(save_npz(tmp_path, train=bomb))
  assert "allow_pickle=False" in error_of(save_npz(tmp_path, train=_GOOD, test=bomb))
  assert len(data.load(save_npz(tmp_path, train=_GOOD, labels=bomb)).train) == 8


def test_npz_that_is_an_npy(tmp_path):
  path = tmp_path / "images.npz"
  with path.open("wb") as file:
    np.save(file, _GOOD)
  assert error_of(path) == f"{path} is not a whole .npz file: it is no zip archive, or is truncated"


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
  assert f"{path} cannot be read as an .npz file: " in error_of(path)


@pytest.mark.parametrize("shape", [(11, 10), (-5, 4), (200, 5)])
def test_npz_with_a_wrong_header(tmp_path, shape):
  path = tmp_path / "images.npz"
  _npz_with_header(path, shape)
  assert str(path) in error_of(path)


def test_truncated_npz(tmp_path):
  whole = save_npz(tmp_path, train=gray(50, 4, 4)).read_bytes()
  path = tmp_path / "cut.npz"
  for size in range(1, len(whole) - 1, 97):
    path.write_bytes(whole[:size])
    assert f"{path} is not a whole .npz file" in error_of(path)


def _valid_npz_bytes():
  buffer = io.BytesIO()
  np.savez_compressed(buffer, train=(gray(6, 3, 3) * 255).astype(np.uint8), test=gray(2, 9))
  return buffer.getvalue()


_VALID_NPZ = _valid_npz_bytes()

_quick = hypothesis.settings(
  max_examples=300,
  derandomize=True,
  deadline=None,
  database=None,
  suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)


@_quick
@hypothesis.given(content=st.binary(max_size=300), is_zip=st.booleans())
def test_random_bytes_as_npz(tmp_path, content, is_zip):
  if is_zip:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
      archive.writestr("train.npy", b"\x93NUMPY\x01\x00" + content)
    content = buffer.getvalue()
  loads_or_says_why(tmp_path / "fuzz.npz", content)


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
  loads_or_says_why(tmp_path / "fuzz.npz", bytes(content))
