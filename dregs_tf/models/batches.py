"""Splits batches into their parts, and converts the parts to Tensors."""

import numbers
from typing import Any, NamedTuple

import tensorflow as tf
import tensorflow_probability as tfp

tfd = tfp.distributions


class Batch(NamedTuple):
  """Holds a batch of data, as Tensors or structures (dicts, tuples, lists) of Tensors.

  context: contexts, Tensors of shape [batch_size, ...], or None.
  x: observations, Tensors of shape [batch_size, ...].
  sample_weight: the examples' weights, a Tensor of floats of shape [batch_size], or None.
  """

  context: Any
  x: Any
  sample_weight: tf.Tensor | None


def split(data: Any, dtype: tf.DType | str = tf.float32) -> Batch:
  """Splits a batch, as `parts` does, and converts its parts.

  Args:
    data: the batch, made of anything that `tf.convert_to_tensor` takes.
    dtype: the floating dtype that floats are cast to.

  Raises:
    ValueError: if there are too many or too few parts, or not one weight for each example.
  """
  context, x, sample_weight = parts(data)
  context, x = as_tensors(context, dtype), as_tensors(x, dtype)
  return Batch(context, x, _as_weights(sample_weight, x, dtype))


def parts(data: Any) -> tuple:
  """Returns (context, x, sample_weight) of a batch or of whole arrays; absent parts are None.

  A tuple or list is (x,), (context, x) or (context, x, sample_weight); anything else is x. Keras
  calls the parts x, y and sample_weight, and passes None for absent ones: (x, None, sample_weight)
  is x with weights, as are (None, x, sample_weight) and, since tf.distribute takes no None,
  ((), x, sample_weight). Keras wraps a tuple that is the only argument, as in `fit((context, x))`,
  once more: ((context, x),) is (context, x). So an observation with several parts and no context
  must be a dict.

  Raises:
    ValueError: if there are too many or too few parts.
  """
  given = tuple(data) if _is_sequence(data) else (data,)
  if not 1 <= len(given) <= 3:
    raise ValueError(
      "A batch must be observations x, (x,), a pair (context, x) or (context, x, sample_weight), "
      f"got {len(given)} parts."
    )
  first, second, sample_weight = (*given, None, None)[:3]
  if second is not None:
    is_empty = isinstance(first, (tuple, list)) and not first
    return None if is_empty else first, second, sample_weight
  if first is None:
    raise ValueError("A batch must have observations, got None.")
  if not _is_sequence(first):
    return None, first, sample_weight
  context, x, inner_weight = parts(first)
  if sample_weight is not None and inner_weight is not None:
    raise ValueError("A batch must have one sample_weight, got two.")
  return context, x, inner_weight if sample_weight is None else sample_weight


def as_tensors(structure: Any, dtype: tf.DType | str = tf.float32):
  """Converts arrays to Tensors: casts floats to `dtype`, keeps integers and booleans.

  Args:
    structure: an array, a list of numbers, or a dict, tuple or list of arrays; None stays.
    dtype: a floating dtype.
  """
  if structure is None:
    return None
  if isinstance(structure, dict) or _is_sequence(structure):
    return tf.nest.map_structure(lambda part: as_tensors(part, dtype), structure)
  tensor = tf.convert_to_tensor(structure)
  return tf.cast(tensor, dtype) if tensor.dtype.is_floating else tensor


def _is_sequence(value) -> bool:
  """Returns whether `value` is a sequence of arrays; a list of numbers stands for one array."""
  if not isinstance(value, (tuple, list)):
    return False
  leaves = tf.nest.flatten(value)
  return not (leaves and all(isinstance(leaf, numbers.Number) for leaf in leaves))


def _as_weights(sample_weight, x, dtype: tf.DType | str) -> tf.Tensor | None:
  """Converts weights of shape [batch_size] or, as Keras allows, [batch_size, 1]; None stays."""
  weights = as_floats(sample_weight, dtype)
  if weights is None:
    return None
  if weights.shape.rank == 2 and weights.shape[1] == 1:
    weights = weights[:, 0]
  if weights.shape.rank != 1 or not weights.shape.is_compatible_with([static_size(x)]):
    raise ValueError(
      "sample_weight must have the shape [batch_size], one weight for each example, got "
      f"{weights.shape} for a batch of {static_size(x)}."
    )
  return weights


def as_floats(tensor: tf.Tensor, dtype: tf.DType | str = tf.float32) -> tf.Tensor | None:
  """Converts an array to a Tensor of `dtype`, integers and booleans too; None stays."""
  return None if tensor is None else tf.cast(tf.convert_to_tensor(tensor), dtype)


def cast_for(distribution: tfd.Distribution, x: Any):
  """Casts x to the dtype of the distribution whose log_prob will take it.

  Floats are not cast to integers: a Bernoulli takes gray values in [0, 1].
  """
  leaves, dtypes = tf.nest.flatten(x), tf.nest.flatten(getattr(distribution, "dtype", None))
  if len(dtypes) != len(leaves):
    return x  # The distribution's own error says which structure it expects.

  def cast(leaf, dtype):
    if dtype is None or (leaf.dtype.is_floating and not tf.as_dtype(dtype).is_floating):
      return leaf
    return tf.cast(leaf, dtype)

  cast_leaves = [cast(leaf, dtype) for leaf, dtype in zip(leaves, dtypes, strict=True)]
  return tf.nest.pack_sequence_as(x, cast_leaves)


def size(structure: Any) -> tf.Tensor:
  """Returns the number of examples in a structure of Tensors [batch_size, ...]: a scalar."""
  return tf.shape(tf.nest.flatten(structure)[0])[0]


def static_size(structure: Any) -> int | None:
  """Returns the number of examples in a structure of Tensors, None if it is not static."""
  return tf.nest.flatten(structure)[0].shape[0]


def take(structure: Any, part: slice):
  """Returns some of the examples of a structure of Tensors; None stays."""
  return tf.nest.map_structure(lambda leaf: None if leaf is None else leaf[part], structure)


def float_dtype(compute_dtype: tf.DType | str) -> tf.DType:
  """Returns the dtype of data, latents and log-weights, given what the layers compute in."""
  dtype = tf.as_dtype(compute_dtype)
  return tf.float32 if dtype.size < 4 else dtype
