"""Reads MNIST and Omniglot from TensorFlow Datasets (TFDS), downloading them if needed."""

import contextlib
import http.client
import io
import os
import pathlib
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from absl import logging

from dregs_tf.data.images import DataError, Images, first_line

_IMAGE_SHAPE = (28, 28)
_READ_BATCH_SIZE = 512

_MNIST_NUM_TRAIN = 50_000
_MNIST_SIZES = {"train": 60_000, "test": 10_000}

_OMNIGLOT_SIZES = {"train": 19_280, "test": 13_180}
_OMNIGLOT_SPLIT_SEED = 20181004
_OMNIGLOT_NUM_VALID = 1_345
_OMNIGLOT_NUM_TEST = 8_070

# Hosts that TFDS downloads from. They are probed first, because TFDS itself may wait for minutes.
_HOSTS = {"mnist": "https://storage.googleapis.com", "omniglot": "https://github.com"}
_PROBE_SECONDS = 5.0


def read_mnist(data_dir: str | os.PathLike | None = None) -> Images:
  """Reads MNIST: 50,000 train, 10,000 valid and 10,000 test images of 28x28 pixels.

  Args:
    data_dir: The folder of TFDS; by default TFDS_DATA_DIR, else ~/tensorflow_datasets.

  Returns:
    The `Images`: train is the first 50,000 of TFDS' train split in TFDS' order, valid the others.

  Raises:
    DataError: if the data are damaged, or are missing and cannot be downloaded.
  """

  def to_gray(pixels):
    return tf.cast(pixels, tf.float32) / 255.0

  splits = _read("mnist", data_dir, _MNIST_SIZES, to_gray)
  return Images(
    name="mnist",
    description="MNIST from TFDS, the last 10,000 of TFDS' train split for validation",
    train=splits["train"][:_MNIST_NUM_TRAIN],
    valid=splits["train"][_MNIST_NUM_TRAIN:],
    test=splits["test"],
    image_shape=_IMAGE_SHAPE,
  )


def read_omniglot(data_dir: str | os.PathLike | None = None) -> Images:
  """Reads Omniglot: 23,045 train, 1,345 valid and 8,070 test images, shrunk to 28x28 pixels.

  The sizes of valid and test are the paper's, but the images are not: the paper uses
  `chardata.mat`, which was shrunk and split in another way.

  Args:
    data_dir: The folder of TFDS; by default TFDS_DATA_DIR, else ~/tensorflow_datasets.

  Returns:
    The `Images`: all 32,460 drawings, in which 1 is ink, with a fixed random split.

  Raises:
    DataError: if the data are damaged, or are missing and cannot be downloaded.
  """

  def to_gray(pixels):
    ink = 1.0 - tf.cast(pixels, tf.float32) / 255.0
    return tf.clip_by_value(tf.image.resize(ink, _IMAGE_SHAPE, method="area"), 0.0, 1.0)

  splits = _read("omniglot", data_dir, _OMNIGLOT_SIZES, to_gray)
  gray = np.concatenate([splits["train"], splits["test"]])
  gray = gray[np.random.RandomState(_OMNIGLOT_SPLIT_SEED).permutation(len(gray))]
  num_train = len(gray) - _OMNIGLOT_NUM_VALID - _OMNIGLOT_NUM_TEST
  return Images(
    name="omniglot",
    description=(
      "Omniglot from TFDS shrunk to 28x28, fixed random split; not the paper's chardata.mat"
    ),
    train=gray[:num_train],
    valid=gray[num_train : num_train + _OMNIGLOT_NUM_VALID],
    test=gray[num_train + _OMNIGLOT_NUM_VALID :],
    image_shape=_IMAGE_SHAPE,
  )


def _read(
  name: str,
  data_dir: str | os.PathLike | None,
  sizes: dict[str, int],
  to_gray: Callable[[tf.Tensor], tf.Tensor],
) -> dict[str, np.ndarray]:
  """Reads the splits of a TFDS data set, and downloads it if needed.

  Args:
    name: TFDS' name of the data set.
    data_dir: As for `read_mnist`.
    sizes: The number of images of each split to read.
    to_gray: Maps uint8 images [N, height, width, 1] to gray ones [N, 28, 28, 1] in [0, 1].

  Returns:
    A float32 array [sizes[split], 784] for each split.
  """
  root, said_by = _data_root(data_dir)
  version_dir = _prepared_dir(root, name) or _download(root, said_by, name)
  try:
    with _quiet():
      builder = tfds.builder_from_directory(version_dir)
      return {split: _read_split(builder, split, sizes[split], to_gray) for split in sizes}
  except Exception as error:  # Damaged folders make TFDS raise nearly anything.
    raise DataError(
      f"the prepared {name} data in {version_dir} are damaged: {first_line(error)}"
    ) from error


def _read_split(
  builder: tfds.core.DatasetBuilder,
  split: str,
  size: int,
  to_gray: Callable[[tf.Tensor], tf.Tensor],
) -> np.ndarray:
  """Reads one split in TFDS' own fixed order, a bounded number of images at a time."""
  declared = builder.info.splits[split].num_examples
  if declared != size:
    raise DataError(f"split {split!r} has {declared} images where {size} were expected")
  examples = builder.as_dataset(
    split=split,
    shuffle_files=False,
    # Only the image is parsed. It is decoded below, as one channel.
    decoders=tfds.decode.PartialDecoding(
      {"image": True}, decoders={"image": tfds.decode.SkipDecoding()}
    ),
    read_config=tfds.ReadConfig(try_autocache=False),
  )
  batches = (
    examples.map(
      lambda example: tf.io.decode_png(example["image"], channels=1),
      num_parallel_calls=tf.data.AUTOTUNE,
      deterministic=True,
    )
    .batch(_READ_BATCH_SIZE)
    .map(to_gray, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    .prefetch(1)
  )
  gray = np.empty((size, _IMAGE_SHAPE[0] * _IMAGE_SHAPE[1]), np.float32)
  num_read = 0
  for batch in batches.as_numpy_iterator():
    gray[num_read : num_read + len(batch)] = batch.reshape(len(batch), -1)
    num_read += len(batch)
  if num_read != size:
    raise DataError(f"split {split!r} holds {num_read} images where {size} were expected")
  return gray


def _data_root(data_dir: str | os.PathLike | None) -> tuple[str, str]:
  """Returns the folder of TFDS and the name of the setting that gives it."""
  if data_dir:
    root, said_by = os.fspath(data_dir), "--data_dir"
  elif os.environ.get("TFDS_DATA_DIR"):
    root, said_by = os.environ["TFDS_DATA_DIR"], "TFDS_DATA_DIR"
  else:
    root, said_by = os.path.join("~", "tensorflow_datasets"), "the default"
  return os.path.expanduser(root), said_by


def _prepared_dir(root: str, name: str) -> str | None:
  """Returns the folder of the newest prepared version, None if there is none."""
  folder = tfds.core.Path(root) / name
  try:
    versions = [
      tfds.core.Version(path.name)
      for path in folder.iterdir()
      if tfds.core.Version.is_valid(path.name) and (path / "dataset_info.json").exists()
    ]
  except OSError:  # Most often because there is no such folder.
    return None
  return os.fspath(folder / str(max(versions))) if versions else None


def _download(root: str, said_by: str, name: str) -> str:
  """Downloads and prepares a data set and returns the folder that holds it."""
  missing = (
    f"{name}: no prepared TFDS data in {root} ({said_by})"
    if pathlib.Path(root).is_dir()
    else f"{name}: the TFDS folder {root} ({said_by}) does not exist"
  )
  remedy = (
    "name a folder with prepared data by --data_dir or TFDS_DATA_DIR, "
    "or use --dataset=digits, which needs no download"
  )
  if not _reachable(_HOSTS[name]):
    raise DataError(f"{missing}, and {_HOSTS[name]} cannot be reached to download it; {remedy}")
  logging.info("downloading %s with TFDS to %s", name, root)
  try:
    with _quiet():
      builder = tfds.builder(name, data_dir=root)
      builder.download_and_prepare()
    return os.fspath(builder.data_path)
  except Exception as error:  # No space, no permission, no answer, an outdated TFDS, ...
    raise DataError(f"{missing}, and its download failed: {first_line(error)}; {remedy}") from error


def _reachable(url: str, seconds: float = _PROBE_SECONDS) -> bool:
  """Returns whether the host answers in time, through a proxy if one is set."""
  answered = threading.Event()

  def ask():
    try:
      request = urllib.request.Request(url, method="HEAD")
      urllib.request.urlopen(request, timeout=seconds).close()
    except urllib.error.HTTPError:  # This is an answer as well, about the path.
      pass
    except (OSError, http.client.HTTPException, ValueError):  # ValueError: no URL.
      return
    answered.set()

  # A thread, because looking up a host's name has no timeout of its own.
  thread = threading.Thread(target=ask, daemon=True)
  thread.start()
  thread.join(seconds)
  return answered.is_set()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Suppresses the progress bars, notices and warnings of TFDS."""
  verbosity = logging.get_verbosity()
  logging.set_verbosity(logging.ERROR)
  try:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
      yield
  finally:
    logging.set_verbosity(verbosity)
