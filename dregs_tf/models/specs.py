"""Describes the shapes and dtypes that a model's layers are built for, and makes examples."""

from typing import Any

import keras
import tensorflow as tf


def of(structure: Any):
  """Returns the spec of each Tensor, with an unknown number of examples; None stays."""

  def spec(tensor):
    if tensor is None:
      return None
    return keras.KerasTensor([None, *tensor.shape[1:]], tensor.dtype.name)

  return tf.nest.map_structure(spec, structure)


def of_one_example(structure: Any):
  """Returns the `tf.TensorSpec` of a batch of one example of each spec; None stays."""

  def tensor_spec(spec):
    return None if spec is None else tf.TensorSpec([1, *spec.shape[1:]], spec.dtype)

  return tf.nest.map_structure(tensor_spec, structure)


def example(structure: Any):
  """Returns a batch of one example, zeros, of each spec, whose sizes are known; None stays."""

  def zeros(spec):
    return None if spec is None else tf.zeros(spec.shape, spec.dtype)

  return tf.nest.map_structure(zeros, of_one_example(structure))


def are_known(structure: Any) -> bool:
  """Returns whether the specs hold every size but that of the batch."""
  return all(None not in spec.shape[1:] for spec in tf.nest.flatten(structure) if spec is not None)


def signature(structure: Any):
  """Returns each spec as `keras.Model.export` takes it; None stays."""

  def input_spec(spec):
    return None if spec is None else keras.InputSpec(shape=spec.shape, dtype=spec.dtype)

  return tf.nest.map_structure(input_spec, structure)


def shapes(x: Any, context: Any):
  """Returns the Keras `input_shape` of specs: that of x, or of the pair (context, x)."""
  x, context = (
    tf.nest.map_structure(lambda spec: None if spec is None else tuple(spec.shape), structure)
    for structure in (x, context)
  )
  return x if context is None else (context, x)


def from_shape(input_shape: Any, dtype: tf.DType) -> dict:
  """Returns the specs of `x` and `context` that a Keras `input_shape` stands for.

  Args:
    input_shape: the shape [batch_size, ...] of observations, or a pair of the context's and the
      observations' shapes; either may be a dict, tuple or list of shapes.
    dtype: the floating dtype of both, which a shape does not tell.

  Raises:
    ValueError: if a size other than the batch's is unknown.
  """
  is_pair = not isinstance(input_shape, dict) and not _is_shape(input_shape)
  context, x = input_shape if is_pair and len(input_shape) == 2 else (None, input_shape)

  def spec(shape):
    if shape is None:
      return None
    if isinstance(shape, dict):
      return {name: spec(part) for name, part in shape.items()}
    if not _is_shape(shape):
      return tuple(spec(part) for part in shape)
    sizes = [int(size) if size is not None else None for size in shape][1:]
    if None in sizes:
      raise ValueError(
        f"input_shape must hold every size but that of the batch, got {tuple(shape)}."
      )
    return keras.KerasTensor([None, *sizes], dtype.name)

  return {"x": spec(x), "context": spec(context)}


def _is_shape(value) -> bool:
  if isinstance(value, tf.TensorShape):
    return True
  is_sequence = isinstance(value, (tuple, list)) and len(value) > 0
  return is_sequence and all(size is None or hasattr(size, "__index__") for size in value)
