"""Turns arrays of gray images into batches, with dynamic binarization and an exact restart."""

import numpy as np
import tensorflow as tf

from dregs_tf import catalogue, seeds
from dregs_tf.data.images import DataError

# Whole images, pairs of halves, or sequences of rows.
TASKS = ("generative", "structured", "rows")

# The seed is fixed, so that every run evaluates on the same binary images.
EVAL_SEED = 1810

# Separates these draws from other draws with the same seed.
_DATA_STREAM = 0xDA7A

# The generator is named because the default one depends on the device.
_ALGORITHM = "philox"

# The number of evaluation images binarized at a time; their pixels depend on it.
_EVAL_CHUNK_SIZE = 256

_NUM_PREFETCHED = 4


def top_and_bottom(flat_images: np.ndarray | tf.Tensor, image_shape: tuple[int, int]):
  """Splits images into halves: structured prediction predicts the bottom from the top.

  Args:
    flat_images: An array or a Tensor of shape [..., H * W], images stored row by row.
    image_shape: The pair (H, W).

  Returns:
    The upper H // 2 rows, of shape [..., (H // 2) * W], and the remaining rows, of shape
    [..., (H - H // 2) * W].

  Raises:
    DataError: if the images do not have H * W pixels, or H is less than 2.
  """
  height, width = image_shape
  if flat_images.shape[-1] != height * width:
    raise DataError(
      f"images of {flat_images.shape[-1]} pixels do not have the image_shape {height}x{width}"
    )
  if height < 2:
    raise DataError(f"images of image_shape {height}x{width} have no top and bottom half")
  cut = (height // 2) * width
  return flat_images[..., :cut], flat_images[..., cut:]


def binarize(gray: tf.Tensor, seed: seeds.Seed) -> tf.Tensor:
  """Draws binary images whose pixels are 1 with a probability equal to the gray value.

  Args:
    gray: An array or a Tensor of any shape, with values in [0, 1].
    seed: An integer, or a stateless seed of shape [2]. The same seed gives the same pixels.

  Returns:
    A float32 Tensor of 0 and 1 with the shape of `gray`, equal to `gray` where that is 0 or 1. NaN,
    a missing pixel, stays NaN.

  Raises:
    ValueError: if the seed is neither.
  """
  gray = tf.convert_to_tensor(gray, tf.float32)
  # Uniform on [0, 1): never below 0, always below 1.
  uniform = tf.random.stateless_uniform(tf.shape(gray), _stateless(seed), alg=_ALGORITHM)
  return tf.where(tf.math.is_nan(gray), gray, tf.cast(uniform < gray, tf.float32))


def train_batches(
  images: np.ndarray,
  batch_size: int,
  seed: seeds.Seed,
  *,
  image_shape: tuple[int, int],
  task: str = "generative",
  start_step: int = 0,
  num_steps: int | None = None,
  dynamic_binarization: bool = True,
  lengths: np.ndarray | None = None,
) -> tf.data.Dataset:
  """Makes the batches to train on; the batch of a step depends only on the seed and the step.

  A run resumed at `start_step` thus sees the same batches as an uninterrupted one. Each epoch goes
  through the images in its own random order, drawn from the seed and the number of the epoch, and
  drops an incomplete last batch. Each step binarizes its images anew.

  Args:
    images: Gray images, an array of shape [N, H * W] with values in [0, 1].
    batch_size: The number of images in each batch, at most N.
    seed: An integer, or a stateless seed of shape [2].
    image_shape: The pair (H, W).
    task: "generative" for batches of whole images, "structured" for pairs of halves, "rows" for
      sequences of rows, from the top, batches [batch_size, H, W].
    start_step: The step, counted from 0, whose batch comes first.
    num_steps: The number of batches; endless if None.
    dynamic_binarization: Whether to binarize; otherwise images and sequences are not changed.
    lengths: The number of rows of each sequence, int32 [N], for the rows task; None if all have
      H.

  Returns:
    A Dataset of float32 Tensors of shape [batch_size, H * W], or, for the structured task, of pairs
    (context, observation): the top halves, of shape [batch_size, (H // 2) * W], and the bottom
    halves, of shape [batch_size, (H - H // 2) * W]. With lengths, pairs (lengths, sequences).

  Raises:
    DataError: if an argument is not as described.
    ValueError: if the seed is not as described.
  """
  images = _checked_images(images, image_shape, task)
  lengths = _checked_lengths(lengths, images, task)
  batch_size = _checked_int("batch_size", batch_size, at_least=1)
  start_step = _checked_int("start_step", start_step, at_least=0)
  if batch_size > len(images):
    raise DataError(f"batch_size {batch_size} is more than the {len(images)} images there are")

  steps_per_epoch = len(images) // batch_size
  start_epoch, first_offset = divmod(start_step, steps_per_epoch)
  # On the CPU even if there is a GPU: tf.data runs there, and would copy images back each step.
  with tf.device("CPU:0"):
    images = tf.constant(images)
    lengths = None if lengths is None else tf.constant(lengths)
    stream = seeds.fold_in(_stateless(seed), _DATA_STREAM)
    order_stream, pixel_stream = seeds.fold_in(stream, 0), seeds.fold_in(stream, 1)

  @tf.autograph.experimental.do_not_convert
  def steps_of_epoch(epoch):
    order = tf.random.experimental.stateless_shuffle(
      tf.range(len(images)), seeds.fold_in(order_stream, epoch), alg=_ALGORITHM
    )
    indices = tf.reshape(order[: steps_per_epoch * batch_size], [steps_per_epoch, batch_size])
    steps = epoch * steps_per_epoch + tf.range(steps_per_epoch, dtype=tf.int64)
    offset = tf.where(epoch == start_epoch, tf.constant(first_offset, tf.int64), 0)
    return tf.data.Dataset.from_tensor_slices((steps[offset:], indices[offset:]))

  @tf.autograph.experimental.do_not_convert
  def batch_of_step(step, indices):
    batch = tf.gather(images, indices)
    if dynamic_binarization:
      batch = binarize(batch, seeds.fold_in(pixel_stream, step))
    lengths_of_batch = None if lengths is None else tf.gather(lengths, indices)
    return _for_task(batch, image_shape, task, lengths_of_batch)

  last_epoch = tf.int64.max // steps_per_epoch  # Steps are counted in int64.
  batches = (
    tf.data.Dataset.range(start_epoch, last_epoch)
    .flat_map(steps_of_epoch)
    .apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY))
  )
  if num_steps is not None:
    batches = batches.take(_checked_int("num_steps", num_steps, at_least=0))
  batches = batches.map(batch_of_step, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
  return _in_order(batches.prefetch(_NUM_PREFETCHED))


def eval_batches(
  images: np.ndarray,
  batch_size: int,
  *,
  image_shape: tuple[int, int],
  task: str = "generative",
  dynamic_binarization: bool = True,
  seed: seeds.Seed = EVAL_SEED,
  lengths: np.ndarray | None = None,
) -> tf.data.Dataset:
  """Makes the batches to evaluate on: every image once, in order, with the same pixels each time.

  The pixels of an image depend on the seed, which is fixed, and on the position of the image
  in the array, but not on the batch size or the number of images.

  Args:
    images: Gray images, an array of shape [N, H * W] with values in [0, 1].
    batch_size: The number of images in each batch; the last batch may have fewer.
    image_shape: The pair (H, W).
    task: as `train_batches` takes it.
    dynamic_binarization: as `train_batches` takes it.
    seed: An integer, or a stateless seed of shape [2]. Change it only to
      measure how much an estimate varies with the binarization.
    lengths: as `train_batches` takes them.

  Returns:
    A Dataset of float32 Tensors, or pairs of them, shaped as those of `train_batches`.

  Raises:
    DataError: if an argument is not as described.
    ValueError: if the seed is not as described.
  """
  images = _checked_images(images, image_shape, task)
  lengths = _checked_lengths(lengths, images, task)
  batch_size = _checked_int("batch_size", batch_size, at_least=1)
  with tf.device("CPU:0"):
    if dynamic_binarization:
      images = _binarize_in_chunks(images, seed)
    arrays = images if lengths is None else (images, lengths)
    batches = tf.data.Dataset.from_tensor_slices(arrays).batch(batch_size)

  @tf.autograph.experimental.do_not_convert
  def of_task(batch, *lengths):
    return _for_task(tf.cast(batch, tf.float32), image_shape, task, *lengths)

  batches = batches.map(of_task, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
  return _in_order(batches.prefetch(_NUM_PREFETCHED))


def _binarize_in_chunks(gray: np.ndarray, seed) -> np.ndarray:
  """Binarizes images to uint8, with a quarter of the gray images' memory, unless pixels are NaN."""
  stream = seeds.fold_in(_stateless(seed), _DATA_STREAM)
  binary = np.empty(gray.shape, np.float32 if np.isnan(gray).any() else np.uint8)
  for start in range(0, len(gray), _EVAL_CHUNK_SIZE):
    chunk = gray[start : start + _EVAL_CHUNK_SIZE]
    # The last chunk is padded, since draws of a shorter shape would be unrelated.
    padding = ((0, _EVAL_CHUNK_SIZE - len(chunk)), (0, 0))
    pixels = binarize(np.pad(chunk, padding), seeds.fold_in(stream, start // _EVAL_CHUNK_SIZE))
    binary[start : start + len(chunk)] = pixels.numpy()[: len(chunk)]
  return binary


def _for_task(batch: tf.Tensor, image_shape: tuple[int, int], task: str, lengths=None):
  if task == "rows":
    rows = tf.reshape(batch, [-1, *image_shape])
    return rows if lengths is None else (lengths, rows)
  return top_and_bottom(batch, image_shape) if task == "structured" else batch


def _in_order(dataset: tf.data.Dataset) -> tf.data.Dataset:
  options = tf.data.Options()
  options.deterministic = True
  return dataset.with_options(options)


def _stateless(seed) -> tf.Tensor:
  if seed is None:
    raise DataError("seed must be an integer or have shape [2], not None, which draws a new one")
  return seeds.stateless(seed)


def _checked_images(images: np.ndarray, image_shape: tuple[int, int], task: str) -> np.ndarray:
  images = np.asarray(images, np.float32)
  height, width = image_shape
  if images.ndim != 2 or len(images) == 0 or images.shape[1] != height * width:
    raise DataError(
      f"images must have shape [N, {height * width}], as image_shape is {height}x{width}, "
      f"not {list(images.shape)}"
    )
  if task not in TASKS:
    raise DataError(f"task must be one of {', '.join(TASKS)}, not {task!r}")
  if task == "structured":
    top_and_bottom(images, image_shape)  # Raises where there are no halves.
  return images


def _checked_lengths(lengths: np.ndarray | None, images: np.ndarray, task: str):
  """Returns the lengths; raises unless there is one for each sequence of rows."""
  if lengths is None:
    return None
  if task != "rows" or np.shape(lengths) != (len(images),):
    raise DataError(
      f"lengths must have shape [N] = [{len(images)}], for the task rows, not "
      f"{list(np.shape(lengths))} for the task {task}"
    )
  return np.asarray(lengths, np.int32)


def _checked_int(name: str, value: int, at_least: int) -> int:
  if not catalogue.is_int(value, at_least):
    raise DataError(f"{name} must be an integer of at least {at_least}, not {value!r}")
  return int(value)
