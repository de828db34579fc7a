"""Derives stateless random seeds, and the noise that replicas draw from them.

The same seed always draws the same samples. Replicas of a model that share a batch get different
noise: the library's own distributions draw the noise of the whole batch on every replica, from the
same seed, and keep the replica's part, so the number of replicas does not change a run. Noise is
cheap next to the model, and no communication is needed.
"""

import contextlib
import contextvars
import operator
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import tensorflow as tf

_INT32 = 2**32

# The types of seed that `stateless` takes.
Seed: TypeAlias = int | Sequence[int] | tf.Tensor | None


class Part(NamedTuple):
  """Describes a replica's part of a batch: consecutive ones of `total` examples, from `start` on.

  replica: the replica's number. seen: the sum of a running count over the replicas.
  """

  replica: tf.Tensor
  start: tf.Tensor
  total: int | tf.Tensor
  seen: tf.Tensor | None = None


_noise_of: contextvars.ContextVar[Part | None] = contextvars.ContextVar("noise_of", default=None)


def words(seed: int) -> list[int]:
  """Returns the two int32 words of an int: a stateless seed as Python numbers."""
  unsigned = [seed % _INT32, (seed // _INT32) % _INT32]
  return [word - _INT32 if word >= _INT32 // 2 else word for word in unsigned]


def stateless(seed: Seed) -> tf.Tensor:
  """Converts an int, a stateless seed or None to an int32 Tensor of shape [2].

  Args:
    seed: an int (taken modulo 2^64) or an integer scalar, an integer Tensor or sequence of shape
      [2], or None, which draws a new seed from TensorFlow's global generator at every call, also
      inside a `tf.function`.

  Raises:
    ValueError: if `seed` is none of these.
  """
  if seed is None:
    return tf.random.uniform([2], minval=tf.int32.min, maxval=tf.int32.max, dtype=tf.int32)
  try:
    value = operator.index(seed)  # type: ignore[arg-type]
  except TypeError:
    pass
  else:
    return tf.constant(words(value), tf.int32)
  allowed = "an int, an integer Tensor of shape [2], or None"
  try:
    tensor = tf.convert_to_tensor(seed)
  except (TypeError, ValueError) as error:
    raise ValueError(f"seed must be {allowed}, got {seed!r}.") from error
  if tensor.dtype.is_integer and tensor.shape.rank == 0:
    return tf.bitcast(tf.cast(tensor, tf.int64), tf.int32)  # the low word first, as in `words`
  if not tensor.dtype.is_integer or not tensor.shape.is_compatible_with([2]):
    dtype, shape = tensor.dtype.name, tensor.shape
    raise ValueError(f"seed must be {allowed}, got dtype {dtype}, shape {shape}.")
  return tf.cast(tensor, tf.int32)


def fold_in(seed: tf.Tensor, *data: int | tf.Tensor) -> tf.Tensor:
  """Derives a new stateless seed, of shape [2], from `seed` and the integers `data`."""
  for value in data:
    seed = tf.random.experimental.stateless_fold_in(seed, value)
  return seed


@contextlib.contextmanager
def noise_of(part: Part | None, seed: Seed, *, shared: bool):
  """Makes the noise drawn inside differ between replicas; yields the seed to draw it with.

  Args:
    part: the replica's part of the batch; None changes nothing.
    seed: as `bounds.estimate` takes it, the same on every replica.
    shared: whether `draw` draws the noise, for the whole batch. Otherwise each replica gets a
      different seed.
  """
  if part is None:
    yield seed
    return
  if not shared:
    seed = fold_in(stateless(seed), part.replica)
  token = _noise_of.set(part if shared else None)
  try:
    yield seed
  finally:
    _noise_of.reset(token)


def draw(sampler: Callable[[tf.Tensor], tf.Tensor], shape: tf.Tensor, axis: int) -> tf.Tensor:
  """Draws `sampler(shape)`; on a replica, its part along `axis` of the whole batch's noise.

  Args:
    sampler: draws noise of a given shape.
    shape: an int32 vector, the shape of the noise of the replica's examples.
    axis: the axis of the examples.
  """
  part = _noise_of.get()
  if part is None:
    return sampler(shape)
  shape = tf.convert_to_tensor(shape)
  whole = tf.concat([shape[:axis], [part.total], shape[axis + 1 :]], axis=0)
  begin = tf.one_hot(axis, tf.size(shape), part.start, 0, dtype=tf.int32)
  return tf.slice(sampler(whole), begin, shape)
