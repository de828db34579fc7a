"""Stateless random seeds: the same seed always draws the same samples."""

import operator

import tensorflow as tf

_INT32 = 2**32


def words(seed: int) -> list[int]:
  """The two int32 words of an int, a stateless seed as Python numbers."""
  unsigned = [seed % _INT32, (seed // _INT32) % _INT32]
  return [word - _INT32 if word >= _INT32 // 2 else word for word in unsigned]


def stateless(seed) -> tf.Tensor:
  """An int, a stateless seed or None as an int32 Tensor of shape [2].

  Args:
    seed: an int (taken modulo 2^64) or an integer scalar, an integer Tensor or sequence of shape
      [2], or None, which draws a new seed from TensorFlow's global generator at every call, inside
      a `tf.function` too.

  Raises:
    ValueError: if `seed` is none of these.
  """
  if seed is None:
    return tf.random.uniform([2], minval=tf.int32.min, maxval=tf.int32.max, dtype=tf.int32)
  try:
    value = operator.index(seed)
  except TypeError:
    pass
  else:
    return tf.constant(words(value), tf.int32)
  allowed = "an int, an integer Tensor of shape [2], or None"
  try:
    seed = tf.convert_to_tensor(seed)
  except (TypeError, ValueError) as error:
    raise ValueError(f"seed must be {allowed}, got {seed!r}.") from error
  if seed.dtype.is_integer and seed.shape.rank == 0:
    return tf.bitcast(tf.cast(seed, tf.int64), tf.int32)  # the low word first, as `words` has it
  if not seed.dtype.is_integer or not seed.shape.is_compatible_with([2]):
    raise ValueError(f"seed must be {allowed}, got dtype {seed.dtype.name}, shape {seed.shape}.")
  return tf.cast(seed, tf.int32)


def fold_in(seed: tf.Tensor, *data) -> tf.Tensor:
  """A new stateless seed, of shape [2], for each combination of `seed` and the integers `data`."""
  for value in data:
    seed = tf.random.experimental.stateless_fold_in(seed, value)
  return seed
