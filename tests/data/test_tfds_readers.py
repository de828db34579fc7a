"""Tests of MNIST and Omniglot through TFDS: what is read, and what is said when it cannot be."""

import os
import pathlib
import shutil
import time

import numpy as np
import pytest

from dregs_tf import data
from dregs_tf.data import tfds_readers

_BESIDE_THE_REPOSITORY = (
  pathlib.Path(__file__).resolve().parents[3] / "shared" / "tensorflow_datasets"
)


@pytest.fixture
def no_network(monkeypatch):
  monkeypatch.setattr(tfds_readers, "_reachable", lambda url: False)


def _prepared(name):
  """Returns a folder with prepared data or skips the test."""
  for folder in (os.environ.get("TFDS_DATA_DIR"), _BESIDE_THE_REPOSITORY):
    if folder and (pathlib.Path(folder) / name).is_dir():
      return pathlib.Path(folder)
  pytest.skip(
    f"needs {name} as prepared by TFDS, in TFDS_DATA_DIR or ../shared/tensorflow_datasets"
  )


def _error_of(name, data_dir=None):
  with pytest.raises(data.DataError) as caught:
    data.load(name, data_dir)
  message = str(caught.value)
  assert "\n" not in message
  return message


def test_mnist(no_network, capfd):
  images = data.load("mnist", _prepared("mnist"))
  assert (images.name, images.image_shape) == ("mnist", (28, 28))
  assert images.train.shape == (50_000, 784)
  assert images.valid.shape == images.test.shape == (10_000, 784)
  both = np.concatenate([images.train, images.valid])
  assert both.dtype == images.test.dtype == np.float32
  assert (both.min(), both.max()) == (0, 1)
  # The mean and the standard deviation that everyone normalizes MNIST with.
  assert both.mean(dtype=np.float64) == pytest.approx(0.1307, abs=5e-5)
  assert both.std(dtype=np.float64) == pytest.approx(0.3081, abs=5e-5)
  assert images.test.mean(dtype=np.float64) == pytest.approx(0.1325, abs=5e-5)
  # Row by row and upright: digits are slender, so their outer columns hold less ink than the rows.
  ink = images.mean.reshape(28, 28)
  assert ink[:, :6].sum() < ink[:6].sum()
  # The images are whole numbers out of 255.
  np.testing.assert_allclose(images.test * 255, np.round(images.test * 255), atol=1e-4)
  captured = capfd.readouterr()
  assert captured.out == ""
  assert "WARNING:absl" not in captured.err


def test_mnist_from_the_environment(no_network, monkeypatch):
  folder = _prepared("mnist")
  monkeypatch.setenv("TFDS_DATA_DIR", str(folder))
  assert tfds_readers._data_root(None) == (str(folder), "TFDS_DATA_DIR")
  assert tfds_readers._data_root("other") == ("other", "--data_dir")
  assert tfds_readers._prepared_dir(str(folder), "mnist").startswith(str(folder / "mnist"))


@pytest.fixture(scope="module", name="omniglot")
def _omniglot():
  return data.load("omniglot", _prepared("omniglot"))


def test_omniglot(omniglot):
  images = omniglot
  assert (images.name, images.image_shape) == ("omniglot", (28, 28))
  assert "not the paper's chardata.mat" in images.description
  assert images.train.shape == (23_045, 784)
  assert images.valid.shape == (1_345, 784)
  assert images.test.shape == (8_070, 784)
  for split in (images.train, images.valid, images.test):
    assert split.dtype == np.float32
    assert split.min() == 0
    assert split.max() == 1
    # Ink is 1 and covers about a twelfth of the paper, in each split alike.
    assert split.mean() == pytest.approx(0.0805, abs=0.001)
    assert (split.sum(axis=1) > 0).all()
  # 28x28 of 105x105: averages of 3.75 x 3.75 binary pixels take more than two values.
  assert len(np.unique(images.valid)) > 10


def test_omniglot_shrinks_by_averaging_areas(omniglot):
  # The ink of a drawing stays the same; two drawings are known to be equal (Braille 1, no. 3, 19).
  everything = np.concatenate([omniglot.train, omniglot.valid, omniglot.test])
  assert len(everything) == 32_460
  num_ink_pixels = everything.sum(axis=1, dtype=np.float64) * 3.75**2
  np.testing.assert_allclose(num_ink_pixels, np.round(num_ink_pixels), atol=0.02)
  assert len({drawing.tobytes() for drawing in everything}) <= 32_459


@pytest.mark.parametrize("name", ["mnist", "omniglot"])
def test_no_data_and_no_network(tmp_path, no_network, monkeypatch, name):
  monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
  monkeypatch.setenv("HOME", str(tmp_path))
  remedy = "by --data_dir or TFDS_DATA_DIR, or use --dataset=digits, which needs no download"

  message = _error_of(name, tmp_path / "typo")
  assert message.startswith(f"{name}: the TFDS folder {tmp_path / 'typo'} (--data_dir) does not")
  assert message.endswith(remedy)
  assert f"no prepared TFDS data in {tmp_path} (--data_dir), and https" in _error_of(name, tmp_path)
  assert f"{tmp_path}/tensorflow_datasets (the default) does not exist" in _error_of(name)
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "elsewhere"))
  assert f"{tmp_path}/elsewhere (TFDS_DATA_DIR) does not exist" in _error_of(name)
  assert not list(tmp_path.iterdir())


def test_download_that_fails(tmp_path, monkeypatch, capfd):
  def fail(*args, **kwargs):
    print("Downloading and preparing ...")
    raise ConnectionError("no answer\nand a second line")

  monkeypatch.setattr(tfds_readers, "_reachable", lambda url: True)
  monkeypatch.setattr(tfds_readers.tfds, "builder", fail)
  message = _error_of("mnist", tmp_path)
  assert f"{tmp_path} (--data_dir), and its download failed: no answer; name a folder" in message
  assert "Downloading and preparing" not in "".join(capfd.readouterr())


def test_unreachable_host_is_found_out_at_once():
  start = time.monotonic()
  assert not tfds_readers._reachable("http://127.0.0.1:1/")
  assert not tfds_readers._reachable("http://name.invalid/", seconds=1.0)
  assert not tfds_readers._reachable("no url")
  assert time.monotonic() - start < 5


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b"[]", b"\xff\xfe"])
def test_folder_with_a_damaged_description(tmp_path, no_network, content):
  folder = tmp_path / "mnist" / "3.0.1"
  folder.mkdir(parents=True)
  (folder / "dataset_info.json").write_bytes(content)
  assert f"the prepared mnist data in {folder} are damaged: " in _error_of("mnist", tmp_path)


@pytest.mark.parametrize("missing", [None, "mnist-train.tfrecord-00000-of-00001", "features.json"])
def test_damaged_images(tmp_path, no_network, missing):
  whole = _prepared("mnist") / "mnist"
  folder = tmp_path / "mnist" / "3.0.1"
  shutil.copytree(whole / "3.0.1", folder, copy_function=shutil.copyfile)
  folder.chmod(0o755)
  if missing:
    (folder / missing).unlink()
  else:
    os.truncate(folder / "mnist-train.tfrecord-00000-of-00001", 100_000)
  assert f"the prepared mnist data in {folder} are damaged: " in _error_of("mnist", tmp_path)
