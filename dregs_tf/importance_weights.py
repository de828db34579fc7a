"""Computes functions of log importance weights, over axis 0, the samples.

`log_weights` is a Tensor of shape [num_samples, ...] in nats. A log-weight of -inf is a sample of
weight 0. NaN and +inf are not hidden: they make the result NaN (or +inf).
"""

import math
import numbers
import sys
from typing import Any, NamedTuple

import tensorflow as tf

# As in ArviZ, weights smaller than this, relative to the largest one, are not part of a tail.
_LOG_TINY = math.log(sys.float_info.min)

# A generalized Pareto distribution is fitted to at least this many weights, or not at all.
_LEAST_TAIL = 5


def as_scalar(value: Any, dtype: tf.DType):
  """Returns a number unchanged, in full precision, or a scalar Tensor or Variable as `dtype`."""
  return value if isinstance(value, numbers.Real) else tf.cast(value, dtype)


def count(log_weights: tf.Tensor, dtype: tf.DType | None = None) -> tf.Tensor:
  """Returns K in the log-weights' or another dtype; where it is static, without an operation."""
  dtype, static = dtype or log_weights.dtype, log_weights.shape[0]
  if static is None:
    return tf.cast(tf.shape(log_weights)[0], dtype)
  return tf.constant(static, dtype)


def log_sum(log_weights: tf.Tensor) -> tf.Tensor:
  """Returns log sum_i w_i, of shape [...]; -inf where every weight is 0."""
  return tf.reduce_logsumexp(log_weights, axis=0)


def log_mean(log_weights: tf.Tensor) -> tf.Tensor:
  """Returns log (1/K) sum_i w_i, of shape [...]: the IWAE bound in nats (Burda et al. 2015)."""
  return log_sum(log_weights) - tf.math.log(count(log_weights))


def log_normalize(log_weights: tf.Tensor) -> tf.Tensor:
  """Returns log wbar_i = log (w_i / sum_j w_j), [num_samples, ...]; -inf if every weight is 0."""
  return _log_normalize(log_weights)[0]


def _log_normalize(log_weights: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
  """Returns log wbar_i, and log sum_j w_j, of shape [...]."""
  # Log-weights are shifted to about 0 first, where the rounding of their sum is smallest.
  largest = tf.reduce_max(log_weights, axis=0)
  shift = tf.where(tf.math.is_finite(largest), largest, tf.zeros_like(largest))
  log_weights -= shift
  total = tf.math.log(tf.reduce_sum(tf.exp(log_weights), axis=0))
  return log_weights - tf.where(total == -float("inf"), tf.zeros_like(total), total), shift + total


def normalize(log_weights: tf.Tensor) -> tf.Tensor:
  """Returns wbar_i = w_i / sum_j w_j, [num_samples, ...]; all 0 if every weight is 0."""
  return tf.exp(log_normalize(log_weights))


def effective_sample_size(log_weights: tf.Tensor) -> tf.Tensor:
  """Returns 1 / sum_i wbar_i^2, [...], between 1 and num_samples; 0 if every weight is 0."""
  return tf.math.reciprocal_no_nan(tf.reduce_sum(normalize(log_weights) ** 2, axis=0))


def standard_error(log_weights: tf.Tensor) -> tf.Tensor:
  """Returns sqrt(sum_i wbar_i^2 - 1/K), of shape [...]: the standard error of `log_mean` in nats.

  It is the relative standard error of the mean weight (the delta method). It is meaningless with
  one sample (it is then 0), or if `pareto_k` is above 0.7. If every weight is 0, it is inf.
  """
  return _rounded(log_weights, summarize(log_weights, 0).standard_error)


def cubo(log_weights: tf.Tensor) -> tf.Tensor:
  """Returns CUBO_2 = (1/2) log (1/K) sum_i w_i^2, of shape [...]: an upper estimate in nats.

  Its limit for many samples is an upper bound on log p(x), and exceeds it by half the logarithm of
  1 + chi^2 (Dieng et al. 2017, https://arxiv.org/abs/1611.00328). With few samples it is too low in
  expectation.
  """
  return _rounded(log_weights, summarize(log_weights, 0).cubo)


def pareto_k(log_weights: tf.Tensor) -> tf.Tensor:
  """Estimates the shape k-hat of the weights' upper tail, of shape [...].

  Weights whose tail has shape k have fewer than 1/k finite moments. Above 0.7, neither the mean
  weight nor its standard error can be trusted with any practical number of samples (Vehtari et al.
  2024, https://arxiv.org/abs/1507.02646). A generalized Pareto distribution is fitted (Zhang and
  Stephens 2009) to the ceil(min(K/5, 3 sqrt(K))) largest weights, minus the next largest.

  As in ArviZ, k-hat is inf if fewer than 5 weights exceed the next largest: with 20 samples or
  fewer, if almost all weights are 0, and with equal weights, which have no tail.

  Raises:
    ValueError: if the number of samples is not static.
  """
  num_samples = log_weights.shape[0]
  if num_samples is None:
    raise ValueError(f"log_weights must have a known number of samples, got {log_weights.shape}.")
  return _rounded(log_weights, summarize(log_weights, tail_size(num_samples)).pareto_k)


def _rounded(log_weights: tf.Tensor, value: tf.Tensor) -> tf.Tensor:
  return tf.cast(value, log_weights.dtype)


def leave_one_out_log_sum(log_weights: tf.Tensor) -> tf.Tensor:
  """Returns log sum_{j != i} w_j for each i, [num_samples, ...], in O(num_samples).

  `log(sum_j w_j - w_i)` cancels if w_i holds most of the mass. Only the largest weight can do so;
  any other is at most half of the sum. So the result for the largest one is the sum of the others,
  and the result for each of the others uses log1p(-wbar_i).
  """
  log_normalized, total = _log_normalize(log_weights)
  largest, without_largest = _without_largest(log_weights)
  # A weight tied with the largest is at most 1/2, except for rounding.
  weights = tf.minimum(tf.exp(log_normalized), 0.5)
  return tf.where(largest, without_largest, total + tf.math.log1p(-weights))


def normalize_with_rest(log_weights: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
  """Returns wbar_i and 1 - wbar_i, each [num_samples, ...], where nothing cancels."""
  log_normalized = log_normalize(log_weights)
  weights = tf.exp(log_normalized)
  largest, without_largest = _without_largest(log_normalized)
  return weights, tf.where(largest, tf.exp(without_largest), 1 - tf.minimum(weights, 0.5))


def _without_largest(log_weights: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
  """Returns whether each log-weight is the first of the largest, and `log_sum` of the others."""
  place, depth = tf.argmax(log_weights, axis=0), count(log_weights, tf.int32)
  largest = tf.one_hot(place, depth, axis=0, on_value=True, off_value=False)
  nothing = tf.constant(-float("inf"), log_weights.dtype)
  return largest, log_sum(tf.where(largest, nothing, log_weights))


# --- a few log-weights at a time ------------------------------------------------------------------


class Diagnostics(NamedTuple):
  """Holds an estimate of log p(x), and diagnostics of how far to trust it, each [batch_size].

  value: the bound L_K, `log_mean`: a lower bound on log p(x) in expectation, in nats.
  standard_error: the standard error of the value over the noise of the samples, in nats.
  effective_sample_size: between 1 and K.
  pareto_k: the shape of the weights' upper tail. Above 0.7, trust neither value nor error.
  upper: `cubo`, an upper estimate of log p(x), in nats.
  """

  value: tf.Tensor
  standard_error: tf.Tensor
  effective_sample_size: tf.Tensor
  pareto_k: tf.Tensor
  upper: tf.Tensor


class Summary(NamedTuple):
  """Holds what the diagnostics need from log-weights [num_samples, ...]; `merge` joins two of them.

  num_samples: the number of log-weights, a float64 scalar.
  log_sum: log sum_i w_i in float64, [...].
  log_sum_of_squares: log sum_i w_i^2 in float64, [...].
  largest: the largest log-weights in descending order, [tail_size + 1, ...], padded with -inf.
  """

  num_samples: tf.Tensor
  log_sum: tf.Tensor
  log_sum_of_squares: tf.Tensor
  largest: tf.Tensor

  @property
  def log_mean(self) -> tf.Tensor:
    """Returns log (1/K) sum_i w_i in float64, [...]."""
    return self.log_sum - tf.math.log(self.num_samples)

  @property
  def standard_error(self) -> tf.Tensor:
    """Returns `standard_error` of all log-weights in float64, [...]."""
    square = tf.exp(self.log_sum_of_squares - 2 * self.log_sum) - 1 / self.num_samples
    infinite = tf.constant(math.inf, square.dtype)
    # Rounding may make it negative; `maximum` would also turn NaN into 0.
    square = tf.where(square < 0, tf.zeros_like(square), square)
    return tf.sqrt(tf.where(self.log_sum == -infinite, infinite, square))

  @property
  def effective_sample_size(self) -> tf.Tensor:
    """Returns `effective_sample_size` of all log-weights in float64, [...]."""
    size = tf.exp(2 * self.log_sum - self.log_sum_of_squares)
    return tf.where(self.log_sum == -math.inf, tf.zeros_like(size), size)

  @property
  def cubo(self) -> tf.Tensor:
    """Returns `cubo` of all log-weights in float64, [...]."""
    return (self.log_sum_of_squares - tf.math.log(self.num_samples)) / 2

  @property
  def pareto_k(self) -> tf.Tensor:
    """Returns `pareto_k` of all log-weights in float64, [...]."""
    return _tail_shape(tf.cast(self.largest, tf.float64))

  def diagnostics(self) -> Diagnostics:
    """Returns all diagnostics, in the dtype of the weights."""
    figures = (
      self.log_mean,
      self.standard_error,
      self.effective_sample_size,
      self.pareto_k,
      self.cubo,
    )
    return Diagnostics(*(_rounded(self.largest, figure) for figure in figures))


def tail_size(num_samples: int) -> int:
  """Returns the number of weights, of K samples, in the tail that `pareto_k` fits."""
  return math.ceil(min(num_samples / 5, 3 * math.sqrt(num_samples)))


def summarize(log_weights: tf.Tensor, tail: int) -> Summary:
  """Returns the summary of log-weights [num_samples, ...].

  Args:
    log_weights: those of some or all samples.
    tail: the `tail_size` for all samples.
  """
  wide = tf.cast(log_weights, tf.float64)
  # NaN cannot be sorted.
  ordered = tf.where(tf.math.is_nan(log_weights), tf.constant(math.inf, wide.dtype), wide)
  ordered = tf.cast(ordered, log_weights.dtype)
  return Summary(
    count(wide),
    log_sum(wide),
    log_sum(2 * wide),
    _largest(ordered, tail + 1),
  )


def merge(first: Summary, second: Summary) -> Summary:
  """Returns the summary of the samples of both."""
  return Summary(
    first.num_samples + second.num_samples,
    log_sum(tf.stack([first.log_sum, second.log_sum])),
    log_sum(tf.stack([first.log_sum_of_squares, second.log_sum_of_squares])),
    _largest(tf.concat([first.largest, second.largest], axis=0), first.largest.shape[0]),
  )


def _largest(log_weights: tf.Tensor, number: int) -> tf.Tensor:
  """Returns the largest log-weights in descending order, [number, ...], padded with -inf."""
  if number == 1:
    return tf.reduce_max(log_weights, axis=0, keepdims=True)
  last = [*range(1, log_weights.shape.rank), 0]
  first = [log_weights.shape.rank - 1, *range(log_weights.shape.rank - 1)]
  filling = [[0, number]] + [[0, 0]] * (log_weights.shape.rank - 1)
  filled = tf.pad(log_weights, filling, constant_values=-math.inf)
  return tf.transpose(tf.math.top_k(tf.transpose(filled, last), number).values, first)


def _tail_shape(largest: tf.Tensor) -> tf.Tensor:
  """Computes k-hat, [...], of the M + 1 largest log-weights in descending order, [M + 1, ...]."""
  top = largest[0]
  shifted = largest - tf.where(tf.math.is_finite(top), top, tf.zeros_like(top))
  cutoff = tf.maximum(shifted[-1], tf.constant(_LOG_TINY, top.dtype))
  in_tail = shifted[:-1] > cutoff
  size = tf.reduce_sum(tf.cast(in_tail, top.dtype), axis=0)
  excess = tf.where(in_tail, tf.exp(shifted[:-1]) - tf.exp(cutoff), tf.zeros_like(shifted[:-1]))
  shape = (size * _fitted_shape(excess, size) + 5) / (size + 10)  # a prior worth 10 weights of 1/2
  shape = tf.where(size < _LEAST_TAIL, tf.constant(math.inf, top.dtype), shape)
  return tf.where(top == math.inf, tf.constant(math.nan, top.dtype), shape)


def _fitted_shape(excess: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
  """Fits the shape of a generalized Pareto distribution (Zhang and Stephens 2009), [...].

  Args:
    excess: the excesses in descending order, [M, ...], zeros where there are fewer than M.
    size: the number of excesses, [...].
  """

  def numbers(start: int, end: int) -> tf.Tensor:
    return tf.reshape(tf.range(start, end, dtype=size.dtype), [-1] + [1] * size.shape.rank)

  def mean_log(b: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(tf.math.log1p(-b * excess), axis=0) / size

  most = excess.shape[0]
  place = size - tf.floor(size / 4 + 0.5)  # of the first quartile
  quartile = tf.reduce_sum(tf.where(numbers(0, most) == place, excess, 0), axis=0)
  count = 30 + tf.floor(tf.sqrt(size))
  j = numbers(1, 31 + math.isqrt(most))
  b = 1 / excess[0] + (1 - tf.sqrt(count / (j - 0.5))) / (3 * quartile)
  k = tf.map_fn(mean_log, b)  # One after the other, to save memory.
  log_likelihoods = size * (tf.math.log(-b / k) - k - 1)
  log_likelihoods = tf.where(j <= count, log_likelihoods, tf.constant(-math.inf, size.dtype))
  return mean_log(tf.reduce_sum(normalize(log_likelihoods) * b, axis=0))
