"""Computes functions of log importance weights, over axis 0, the samples.

`log_weights` is a Tensor of shape [num_samples, ...] in nats. A log-weight of -inf is a sample of
weight 0. NaN and +inf are not hidden: they make the result NaN (or +inf).
"""

import numbers
from typing import Any

import tensorflow as tf


def as_scalar(value: Any, dtype: tf.DType):
  """Returns a number as it is, with all its digits, a scalar Tensor or Variable cast to `dtype`."""
  return value if isinstance(value, numbers.Real) else tf.cast(value, dtype)


def log_sum(log_weights: tf.Tensor) -> tf.Tensor:
  """Returns log sum_i w_i, of shape [...]; -inf where every weight is 0."""
  return tf.reduce_logsumexp(log_weights, axis=0)


def log_mean(log_weights: tf.Tensor) -> tf.Tensor:
  """Returns log (1/K) sum_i w_i, of shape [...]: the IWAE bound in nats (Burda et al. 2015)."""
  num_samples = tf.cast(tf.shape(log_weights)[0], log_weights.dtype)
  return log_sum(log_weights) - tf.math.log(num_samples)


def log_normalize(log_weights: tf.Tensor) -> tf.Tensor:
  """Returns log wbar_i = log (w_i / sum_j w_j), [num_samples, ...]; -inf if every weight is 0."""
  # Log-weights are shifted to about 0 first, where the rounding of their sum is smallest.
  largest = tf.reduce_max(log_weights, axis=0)
  log_weights -= tf.where(tf.math.is_finite(largest), largest, tf.zeros_like(largest))
  total = log_sum(log_weights)
  return log_weights - tf.where(total == -float("inf"), tf.zeros_like(total), total)


def normalize(log_weights: tf.Tensor) -> tf.Tensor:
  """Returns wbar_i = w_i / sum_j w_j, [num_samples, ...]; all 0 if every weight is 0."""
  return tf.exp(log_normalize(log_weights))


def effective_sample_size(log_weights: tf.Tensor) -> tf.Tensor:
  """Returns 1 / sum_i wbar_i^2, [...], between 1 and num_samples; 0 if every weight is 0."""
  return tf.math.reciprocal_no_nan(tf.reduce_sum(normalize(log_weights) ** 2, axis=0))


def leave_one_out_log_sum(log_weights: tf.Tensor) -> tf.Tensor:
  """Returns log sum_{j != i} w_j for each i, [num_samples, ...], in O(num_samples).

  `log(sum_j w_j - w_i)` cancels if w_i holds most of the mass. Only the largest weight can; any
  other is at most half of the sum. So the largest one is left out by summing the others, and each
  of the others by log1p(-wbar_i).
  """
  num_samples = tf.shape(log_weights)[0]
  largest = tf.one_hot(
    tf.argmax(log_weights, axis=0), num_samples, axis=0, on_value=True, off_value=False
  )
  without_largest = log_sum(
    tf.where(largest, tf.constant(-float("inf"), log_weights.dtype), log_weights)
  )
  # A weight tied with the largest is at most 1/2, except for rounding.
  weights = tf.minimum(normalize(log_weights), 0.5)
  return tf.where(largest, without_largest, log_sum(log_weights) + tf.math.log1p(-weights))
