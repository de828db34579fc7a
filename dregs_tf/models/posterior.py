"""Estimates log p(x), expectations under p(z | x) and draws from it with many samples."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf
import tensorflow_probability as tfp

from dregs_tf import evaluation, importance_weights, seeds, selection
from dregs_tf.importance_weights import Diagnostics
from dregs_tf.models import calls, parts, steps

tfd = tfp.distributions

# A latent variable is active if the variance of its posterior mean over the data is above this.
_ACTIVE = 0.01


class PosteriorModel(keras.Model):
  """Estimates a model's log p(x | context) and p(z | x, context) by importance sampling.

  Samples of the proposal are drawn and evaluated a few at a time, so memory does not grow with
  their number. Examples are evaluated 100 at a time, unless their number is not static in a graph.
  """

  _graphs: Sequence[str] = ("_log_likelihood", "_posterior_sample", "_impute")

  def log_likelihood(
    self,
    x: Any,
    num_samples: int = 5000,
    context: Any = None,
    seed: seeds.Seed = 0,
    return_diagnostics: bool = False,
  ) -> Any:
    """Estimates log p(x | context) of each example in nats by the bound L_K with K = num_samples.

    Args:
      x: observations [batch_size, ...], or a `tf.data.Dataset` of batches x or (context, x).
      num_samples: K; a positive int.
      context: contexts [batch_size, ...], for a conditional model.
      seed: as `bounds.estimate` takes it.
      return_diagnostics: whether to return diagnostics of how far to trust the estimate.

    Returns:
      A Tensor of shape [batch_size], or [size of the Dataset]; with return_diagnostics,
      `importance_weights.Diagnostics` of such Tensors: value, standard_error,
      effective_sample_size, pareto_k and upper.

    Raises:
      TypeError: if num_samples is not an int.
      ValueError: if num_samples is not positive, or if observations are outside [0, 1] and the
        likelihood is Bernoulli.
    """
    num_samples = evaluation.check_int("num_samples", num_samples, at_least=1)
    none = tf.zeros([0], self.float_dtype)

    def function(x, context, seed):
      return self._log_likelihood(x, context, num_samples, seed, bool(return_diagnostics))

    seed = seeds.fold_in(seeds.stateless(seed), steps.LOG_LIKELIHOOD)
    empty = Diagnostics(*[none] * len(Diagnostics._fields)) if return_diagnostics else none
    return parts.in_parts(self, function, x, context, seed, empty=empty)

  def posterior_expectation(
    self,
    fn: Callable[[Any], Any],
    x: Any,
    num_samples: int = 5000,
    context: Any = None,
    seed: seeds.Seed = 0,
  ) -> Any:
    """Estimates E[fn(z) | x, context] of each example by self-normalized importance sampling.

    The estimate is sum_i wbar_i fn(z_i), biased by O(1/K). `log_likelihood(...,
    return_diagnostics=True)` tells how far to trust the weights.

    Args:
      fn: a function of n latents of b examples, [n, b, ...], that returns a Tensor [n, b, ...] or
        a structure of them; `lambda z: z` gives the posterior's mean.
      x: observations, as `log_likelihood` takes them.
      num_samples: K.
      context: contexts.
      seed: as `bounds.estimate` takes it.

    Returns:
      [batch_size, ...], or a structure of such Tensors; NaN where every weight is 0.

    Raises:
      TypeError: if num_samples is not an int.
      ValueError: if num_samples is not positive, fn returns a wrong shape, or there are no
        examples.
    """
    num_samples = evaluation.check_int("num_samples", num_samples, at_least=1)

    def function(x, context, seed):
      return expectation(fn, *target_and_proposal(self, x, context), num_samples, seed)

    seed = seeds.fold_in(seeds.stateless(seed), steps.POSTERIOR)
    return parts.in_parts(self, parts.compiled(self, function), x, context, seed)

  def posterior_sample(
    self,
    x: Any,
    n: int,
    num_samples: int = 5000,
    context: Any = None,
    seed: seeds.Seed = None,
  ) -> Any:
    """Draws n latents of each example, approximately from p(z | x, context), by resampling.

    Each draw is one of the K samples, chosen with its normalized weight as probability: take n much
    smaller than the effective sample size.

    Args:
      x: observations, as `log_likelihood` takes them.
      n: the number of draws; a positive int.
      num_samples: K.
      context: contexts.
      seed: as `bounds.estimate` takes it.

    Returns:
      [n, batch_size, ...], or a structure of such Tensors; where every weight is 0, floats are NaN.

    Raises:
      TypeError: if n or num_samples is not an int.
      ValueError: if n or num_samples is not positive, or there are no examples.
    """
    n = evaluation.check_int("n", n, at_least=1)
    num_samples = evaluation.check_int("num_samples", num_samples, at_least=1)
    seed = seeds.fold_in(seeds.stateless(seed), steps.POSTERIOR)

    def function(x, context, seed):
      return self._posterior_sample(x, context, n, num_samples, seed)

    return parts.in_parts(self, function, x, context, seed, axis=1)

  def active_units(self, x: Any, context: Any = None, threshold: float = _ACTIVE) -> Any:
    """Counts the latent variables that the model uses (Burda et al. 2016, Sec. 5, and App. C).

    A latent variable is active if the mean of the proposal, `encode`, varies over the data, with a
    variance above the threshold. The others hold the prior's noise, whatever x is.

    Args:
      x: observations, as `log_likelihood` takes them.
      context: contexts.
      threshold: the smallest variance of an active one, in squared units of the latent variables.

    Returns:
      An int, or a structure of ints for a joint proposal.

    Raises:
      ValueError: if there are no examples.
    """

    def function(x, context, _):
      return self.encode(x, context)

    def count(means):
      variances = tf.math.reduce_variance(tf.cast(means, tf.float64), axis=0)
      return int(tf.math.count_nonzero(variances > threshold))

    means = parts.in_parts(self, function, x, context, seeds.stateless(0))
    return tf.nest.map_structure(count, means)

  @functools.cached_property
  def _log_likelihood(self):
    """Returns `log_likelihood` for a batch that fits in memory, traced once per shape."""

    def function(x, context, num_samples, seed, return_diagnostics):
      target, proposal = target_and_proposal(self, x, context)
      return evaluation.log_likelihood(target, proposal, num_samples, seed, return_diagnostics)

    return parts.compiled(self, function)

  @functools.cached_property
  def _posterior_sample(self):
    """Returns `posterior_sample` for a batch that fits in memory, traced once per shape."""

    def function(x, context, n, num_samples, seed):
      return draws(*target_and_proposal(self, x, context), n, num_samples, seed)

    return parts.compiled(self, function)


def target_and_proposal(
  model: keras.Model, x: Any, context: Any
) -> tuple[Callable, tfd.Distribution]:
  """Returns log p(x, z | context) as a function of z, and q(z | x, context)."""

  def target_log_prob(z):
    return model.target_log_prob(x, z, context)

  return target_log_prob, calls.propose(model, x, context)


def expectation(
  fn: Callable[[Any], Any],
  target_log_prob_fn: Callable[[Any], tf.Tensor],
  proposal: tfd.Distribution,
  num_samples: int,
  seed: seeds.Seed = None,
) -> Any:
  """Estimates E[fn(z) | x] by self-normalized importance sampling, streamed over samples.

  Args:
    fn: a function of samples [n, batch_size, ...] that returns a Tensor [n, batch_size, ...], or a
      structure of them.
    target_log_prob_fn: log p(x, z), [n, batch_size], as a function of samples.
    proposal: q(z | x).
    num_samples: K.
    seed: an int, a stateless seed or None.

  Returns:
    sum_i wbar_i fn(z_i), [batch_size, ...], or a structure of such Tensors, biased by O(1/K); NaN
    where every weight is 0. No gradient flows through it.

  Raises:
    TypeError, ValueError: as `log_likelihood`, or if fn returns a wrong shape.
  """

  def summarize(log_weights, samples, _):
    weights = importance_weights.normalize(log_weights)

    def mean(value):
      value = _with_leading_axes(value, log_weights)
      share = _expand(tf.cast(weights, value.dtype), value)
      return tf.reduce_sum(tf.math.multiply_no_nan(value, share), axis=0)

    return _log_sum(log_weights), tf.nest.map_structure(mean, fn(samples))

  def merge(first, second):
    log_sum = tf.reduce_logsumexp([first[0], second[0]], axis=0)
    share = tf.where(log_sum == -math.inf, tf.zeros_like(log_sum), tf.exp(second[0] - log_sum))

    def mean(a, b):
      return a + _expand(tf.cast(share, a.dtype), a) * (b - a)

    return log_sum, tf.nest.map_structure(mean, first[1], second[1])

  log_sum, means = evaluation.stream(
    target_log_prob_fn, proposal, num_samples, seed, summarize, merge
  )
  return tf.nest.map_structure(lambda mean: _where_finite(log_sum, mean), means)


def draws(
  target_log_prob_fn: Callable[[Any], tf.Tensor],
  proposal: tfd.Distribution,
  n: int,
  num_samples: int,
  seed: seeds.Seed = None,
) -> Any:
  """Draws from p(z | x) by sampling importance resampling (Rubin 1987), streamed over samples.

  Each of the n draws is one of the K samples, z_i with probability wbar_i, independently of the
  other draws. As samples stream by, each draw keeps the sample with the largest log-weight plus
  Gumbel noise, which gives these probabilities.

  Args:
    target_log_prob_fn: log p(x, z), [n, batch_size], as a function of samples.
    proposal: q(z | x).
    n: the number of draws.
    num_samples: K, the number of samples to draw from. If n is much smaller than the effective
      sample size, draws are approximately from the posterior and rarely coincide.
    seed: an int, a stateless seed or None.

  Returns:
    [n, batch_size, ...], or a structure of such Tensors; where every weight is 0, floats are NaN.

  Raises:
    TypeError, ValueError: as `log_likelihood`, or if n is not a positive int.
  """
  n = evaluation.check_int("n", n, at_least=1)

  def summarize(log_weights, samples, seed):
    log_sum = _log_sum(log_weights)
    logits = tf.transpose(log_weights)
    index = tf.random.stateless_categorical(logits, n, seeds.fold_in(seed, 0), dtype=tf.int32)
    # If every weight is 0, the index may be one past the end.
    index = tf.minimum(tf.transpose(index), tf.shape(log_weights)[0] - 1)
    # The largest of these samples' keys: log-weights plus Gumbel noise.
    uniform = tf.random.stateless_uniform(tf.shape(index), seeds.fold_in(seed, 1), dtype=tf.float64)
    key = log_sum - tf.math.log(-tf.math.log(uniform))
    return log_sum, key, tf.nest.map_structure(lambda z: selection.take(z, index), samples)

  def merge(first, second):
    log_sum = tf.reduce_logsumexp([first[0], second[0]], axis=0)
    takes = second[1] > first[1]

    def choose(a, b):
      return tf.where(_expand(takes, a), b, a)

    key = choose(first[1], second[1])
    return log_sum, key, tf.nest.map_structure(choose, first[2], second[2])

  log_sum, _, samples = evaluation.stream(
    target_log_prob_fn, proposal, num_samples, seed, summarize, merge
  )
  return tf.nest.map_structure(lambda z: _where_finite(log_sum[tf.newaxis], z), samples)


def _log_sum(log_weights: tf.Tensor) -> tf.Tensor:
  return importance_weights.log_sum(tf.cast(log_weights, tf.float64))


def _with_leading_axes(value: Any, log_weights: tf.Tensor) -> tf.Tensor:
  """Returns a result of `fn` as floats; raises unless its shape is [n, batch_size, ...]."""
  value = tf.convert_to_tensor(value)
  if value.shape.rank is not None and not value.shape[:2].is_compatible_with(log_weights.shape):
    raise ValueError(
      "fn must return a Tensor of shape [num_samples, batch_size, ...] = "
      f"{log_weights.shape.as_list()} and more, as its argument has, got {value.shape}."
    )
  return value if value.dtype.is_floating else tf.cast(value, log_weights.dtype)


def _expand(tensor: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
  """Appends axes of size 1 until the ranks agree."""
  extra = [1] * (like.shape.rank - tensor.shape.rank)
  return tf.reshape(tensor, tf.concat([tf.shape(tensor), extra], axis=0))


def _where_finite(log_sum: tf.Tensor, value: tf.Tensor) -> tf.Tensor:
  """Returns the value, stopped; NaN where no weight is positive or a weight is not finite."""
  if not value.dtype.is_floating:
    return value
  nan = tf.constant(math.nan, value.dtype)
  return tf.stop_gradient(tf.where(_expand(tf.math.is_finite(log_sum), value), value, nan))
