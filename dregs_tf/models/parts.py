"""Applies a function to many examples under a model, in batches that fit in memory."""

from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from dregs_tf import seeds
from dregs_tf.models import batches, calls, inputs, products

_EXAMPLES_AT_A_TIME = 100


def in_parts(
  model: keras.Model,
  function: Callable,
  x: Any,
  context: Any,
  seed: tf.Tensor,
  *,
  axis: int = 0,
  empty: Any = None,
) -> Any:
  """Computes a function of examples, some at a time, and concatenates the results.

  Layers are in inference mode, and the library's layers multiply in float32 or better. In a graph
  without a static number of examples, all are evaluated at once.

  Args:
    model: a `LatentVariableModel`.
    function: a function of observations and contexts, Tensors of some examples, and a stateless
      seed; it returns a Tensor, or a structure of Tensors.
    x: observations [batch_size, ...], or a Dataset of batches x or (context, x).
    context: contexts, or None.
    seed: a stateless seed, from which each part's seed is derived.
    axis: the axis of the examples in the results.
    empty: the result if there are no examples.

  Raises:
    ValueError: if both a Dataset and contexts are given, or if there are no examples and `empty` is
      None.
  """
  results, start = [], 0
  for pair in _pairs(x, context, model.float_dtype):
    for first, part in _cut(pair):
      with calls.mode(model, training=False), products.in_float32():
        results.append(function(*part, seeds.fold_in(seed, start + first)))
      inputs.check_values(model, *part)  # The kind of likelihood is certain only now.
    start += batches.static_size(pair[0]) or 0
  if not results:
    if empty is None:
      raise ValueError("x must have examples, got none.")
    return empty
  return tf.nest.map_structure(lambda *parts: tf.concat(parts, axis=axis), *results)


def _pairs(x, context, dtype: tf.DType) -> Iterator[tuple]:
  """Yields (x, context) of each batch of a Dataset, or of all examples, as Tensors."""
  if not isinstance(x, tf.data.Dataset):
    yield batches.as_tensors(x, dtype), batches.as_tensors(context, dtype)
    return
  if context is not None:
    raise ValueError("context must be part of the Dataset's batches, (context, x), got both.")
  for batch in x:
    yield batches.split(batch, dtype)[1::-1]


def _cut(pair: tuple) -> Iterator[tuple[int, tuple]]:
  """Yields the index of an example, and (x, context) of the up to 100 examples from it on."""
  num_examples = batches.static_size(pair[0])
  if num_examples is None:
    yield 0, pair
    return
  for first in range(0, num_examples, _EXAMPLES_AT_A_TIME):
    yield first, batches.take(pair, slice(first, first + _EXAMPLES_AT_A_TIME))


def compiled(model: keras.Model, function: Callable) -> Callable:
  """Compiles a function of Tensors to a graph.

  It uses XLA if `fit` does and there is a GPU: on a CPU, TensorFlow's own products are faster.
  """
  has_gpu = bool(tf.config.list_physical_devices("GPU"))
  jit_compile = model.compiled and bool(model.jit_compile) and has_gpu
  return tf.function(function, autograph=False, jit_compile=jit_compile)
