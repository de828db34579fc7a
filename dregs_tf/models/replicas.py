"""Finds the part of a global batch that a replica holds, under a `tf.distribute` strategy."""

from typing import Any

import tensorflow as tf

from dregs_tf import seeds


def part_of_batch(batch: Any, seen: tf.Tensor | None = None) -> seeds.Part | None:
  """Returns which part of the global batch `batch` is; None if there are no other replicas.

  Replicas hold consecutive examples, in the replicas' order. If the size of `batch` is static, all
  replicas have that size. Otherwise, or if `seen` is given, they exchange these numbers.

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
    return seeds.Part(replica, replica * size, context.num_replicas_in_sync * size)
  # Sums in float32, which every collective supports; the results are whole numbers.
  place = tf.one_hot(replica, context.num_replicas_in_sync)
  size = tf.cast(tf.shape(examples)[0], tf.float32)
  seen = tf.zeros([]) if seen is None else tf.cast(seen, tf.float32)
  sizes, seen = context.all_reduce("SUM", [place * size, seen])
  start = tf.reduce_sum(tf.where(tf.range(tf.size(sizes)) < replica, sizes, 0.0))
  whole = [tf.cast(tf.round(number), tf.int32) for number in (start, tf.reduce_sum(sizes), seen)]
  return seeds.Part(replica, *whole)
