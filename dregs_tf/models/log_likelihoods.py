"""log p(x) of many examples under a model, a batch that fits in memory at a time."""

from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from dregs_tf import bounds, seeds
from dregs_tf.models import batches, calls, inputs

_EXAMPLES_AT_A_TIME = 100


def of_dataset(
  model: keras.Model, dataset: tf.data.Dataset, num_samples: int, seed: tf.Tensor
) -> tf.Tensor:
  """Computes log p(x | context) of the examples of a Dataset of batches, concatenated: [N]."""
  parts, start = [], 0
  for batch in dataset:
    context, x, _ = batches.split(batch, model.float_dtype)
    parts += _in_parts(model, x, context, num_samples, seed, start)
    start += batches.static_size(x)
  return _concat(model, parts)


def of_arrays(
  model: keras.Model, x: Any, context: Any, num_samples: int, seed: tf.Tensor
) -> tf.Tensor:
  """Computes log p(x | context) of Tensors [batch_size, ...]: [batch_size]."""
  return _concat(model, list(_in_parts(model, x, context, num_samples, seed, start=0)))


def _in_parts(
  model, x, context, num_samples: int, seed: tf.Tensor, start: int
) -> Iterator[tf.Tensor]:
  """Yields log p(x | context) of some examples at a time.

  Where a graph does not know how many there are, all are evaluated at once.

  Args:
    model: a `LatentVariableModel`.
    x: observations, Tensors of shape [batch_size, ...].
    context: contexts, or None.
    num_samples: K.
    seed: a stateless seed.
    start: the number of the first example, which its noise depends on.
  """
  num_examples = batches.static_size(x)
  if num_examples is None:
    yield _of_part(model, x, context, num_samples, seeds.fold_in(seed, start))
    return
  for first in range(0, num_examples, _EXAMPLES_AT_A_TIME):
    x_part, context_part = batches.take((x, context), slice(first, first + _EXAMPLES_AT_A_TIME))
    part_seed = seeds.fold_in(seed, start + first)
    yield _of_part(model, x_part, context_part, num_samples, part_seed)


def _of_part(model, x, context, num_samples: int, seed: tf.Tensor) -> tf.Tensor:
  with calls.mode(model, training=False):
    result = model._log_likelihood(x, context, num_samples, seed)
  inputs.check_values(model, x)  # Only now the kind of likelihood is known for certain.
  return result


def _concat(model, parts: list[tf.Tensor]) -> tf.Tensor:
  return tf.concat(parts, axis=0) if parts else tf.zeros([0], model.float_dtype)


def compiled(model: keras.Model) -> Callable:
  """Returns a function (x, context, num_samples, seed) of a batch that fits in memory.

  With XLA if `fit` has it and there is a GPU: on a CPU, TensorFlow's own products are faster.
  """
  has_gpu = bool(tf.config.list_physical_devices("GPU"))
  jit_compile = model.compiled and bool(model.jit_compile) and has_gpu

  @tf.function(autograph=False, jit_compile=jit_compile)
  def log_likelihood(x, context, num_samples, seed):
    return bounds.log_likelihood(
      lambda z: model.target_log_prob(x, z, context),
      calls.call(model.proposal, x, context),
      num_samples,
      seed,
    )

  return log_likelihood
