"""Replicas of a model that share a batch: how they draw the noise that one device would draw.

Under a `tf.distribute` strategy each replica sees a part of the global batch. The library's own
distributions draw the noise of the whole batch on every replica, from the same seed, and keep the
replica's part of it: replicas never share noise, and their number does not change a run. Noise is
cheap next to the model, and no communication is needed.
"""

import contextlib
import contextvars
from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from dregs_tf import seeds


class Part(NamedTuple):
  """A replica's part of a batch: so many of `total` examples, beginning with number `start`.

  replica: the replica's number. seen: a running count of the replicas', summed over them.
  """

  replica: tf.Tensor
  start: tf.Tensor
  total: int | tf.Tensor
  seen: tf.Tensor | None = None


_noise_of = contextvars.ContextVar("noise_of", default=None)


def part_of_batch(batch, seen: tf.Tensor | None = None) -> Part | None:
  """The part of the global batch that `batch` is; None if there are no other replicas.

  Replicas hold consecutive examples, in their order. Where a graph knows the size of `batch`, they
  are all of that size; otherwise, or if there is something to count, they tell each other.

  Args:
    batch: the replica's examples, Tensors of shape [size, ...].
    seen: a whole number to sum over the replicas.
  """
  context = tf.distribute.get_replica_context()
  if context is None or context.num_replicas_in_sync == 1:
    return None
  replica = tf.convert_to_tensor(context.replica_id_in_sync_group)
  examples = tf.nest.flatten(batch)[0]
  size = examples.shape[0]
  if size is not None and seen is None and not tf.executing_eagerly():
    return Part(replica, replica * size, context.num_replicas_in_sync * size)
  # Sums in float32, which every collective supports; whole numbers all the same.
  place = tf.one_hot(replica, context.num_replicas_in_sync)
  size = tf.cast(tf.shape(examples)[0], tf.float32)
  seen = tf.zeros([]) if seen is None else tf.cast(seen, tf.float32)
  sizes, seen = context.all_reduce("SUM", [place * size, seen])
  start = tf.reduce_sum(tf.where(tf.range(tf.size(sizes)) < replica, sizes, 0.0))
  whole = [tf.cast(tf.round(number), tf.int32) for number in (start, tf.reduce_sum(sizes), seen)]
  return Part(replica, *whole)


@contextlib.contextmanager
def noise_of(part: Part | None, seed, *, shared: bool):
  """Has what is drawn inside be the replica's own noise; yields the seed to draw it with.

  Args:
    part: the replica's part of the batch; None changes nothing.
    seed: as `bounds.estimate` takes it, the same on every replica.
    shared: whether what is drawn is drawn by `draw`, for the whole batch. Otherwise each replica
      gets a seed of its own.
  """
  if part is None:
    yield seed
    return
  if not shared:
    seed = seeds.fold_in(seeds.stateless(seed), part.replica)
  token = _noise_of.set(part if shared else None)
  try:
    yield seed
  finally:
    _noise_of.reset(token)


def draw(sampler: Callable[[tf.Tensor], tf.Tensor], shape: tf.Tensor, axis: int) -> tf.Tensor:
  """`sampler(shape)`, or the replica's part along `axis`, the examples, of what a whole batch has.

  Args:
    sampler: draws noise of a given shape.
    shape: an int32 vector, the shape of the noise of the replica's examples.
    axis: which axis of it the examples are along.
  """
  part = _noise_of.get()
  if part is None:
    return sampler(shape)
  shape = tf.convert_to_tensor(shape)
  whole = tf.concat([shape[:axis], [part.total], shape[axis + 1 :]], axis=0)
  begin = tf.one_hot(axis, tf.size(shape), part.start, 0, dtype=tf.int32)
  return tf.slice(sampler(whole), begin, shape)
