"""Values of Monte Carlo objectives and their derivatives, as pure functions of log-weights.

Each function takes log-weights l of shape [num_samples, batch_size] in nats, of independent
samples, and returns the `Terms` that every estimator of its gradient is made of. Nothing here is
left to autodiff, and nothing cancels where one weight holds all the mass.
"""

import math
from typing import NamedTuple

import tensorflow as tf

from dregs_tf import importance_weights as iw


class Terms(NamedTuple):
  """A value F(l_1, ..., l_K), and the derivatives that its gradient takes.

  value: [batch_size], in nats.
  u: [num_samples, batch_size], F_i = dF / dl_i: the weight of dlog w_i in the total derivative.
  v: of the same shape, F_i - F_ii: the weight of the path after the second reparameterization.
  difference: of the same shape, F_ii = u - v, computed so that it does not cancel.
  """

  value: tf.Tensor
  u: tf.Tensor
  v: tf.Tensor
  difference: tf.Tensor


def elbo(log_weights: tf.Tensor) -> Terms:
  """Computes the mean of K ELBOs."""
  uniform = tf.ones_like(log_weights) / tf.cast(tf.shape(log_weights)[0], log_weights.dtype)
  return Terms(tf.reduce_mean(log_weights, axis=0), uniform, uniform, tf.zeros_like(uniform))


def iwae(log_weights: tf.Tensor) -> Terms:
  """Computes the K-sample bound L_K = log (1/K) sum_i w_i, with wbar and wbar^2 (Eqs. 3 and 7)."""
  log_normalized = iw.log_normalize(log_weights)
  weights = tf.exp(log_normalized)
  others = tf.exp(iw.leave_one_out_log_sum(log_normalized))  # 1 - wbar
  difference = tf.math.multiply_no_nan(others, weights)
  return Terms(iw.log_mean(log_weights), weights, weights**2, difference)


def jvi(log_weights: tf.Tensor, order: int) -> Terms:
  """Computes the jackknife of order m (Sec. 4.2; Nowozin 2018): bounds on subsets, combined.

    JVI_m = sum_{j=0..m} C(K, m, j) * mean over subsets S of size K-j of L(S),
    C(K, m, j) = (-1)^j (K-j)^m / ((m-j)! j!)

  The coefficients grow like K^m and cancel, so this is computed in float64.
  """
  num_samples = log_weights.shape[0]
  if num_samples is None:
    raise ValueError("axis 0 of log_weights, the samples, must be of a known size for JVI.")
  exact = tf.cast(log_weights, tf.float64)
  # Relative to the largest: an offset would cost digits.
  largest = tf.reduce_max(exact, axis=0)
  largest = tf.where(tf.math.is_finite(largest), largest, tf.zeros_like(largest))
  total = [0.0] * len(Terms._fields)
  for j in range(order + 1):
    scale = (-1) ** j * (num_samples - j) ** order / (math.factorial(order - j) * math.factorial(j))
    parts = _subset_average(exact - largest, j)
    total = [t + scale * part for t, part in zip(total, parts, strict=True)]
  value, *weights = total
  # Without any weight the sum would be one of infinities.
  no_weight = tf.reduce_all(exact == -math.inf, axis=0)
  value = tf.where(no_weight, tf.constant(-math.inf, tf.float64), value + largest)
  return Terms(*(tf.cast(part, log_weights.dtype) for part in (value, *weights)))


def _subset_average(log_weights: tf.Tensor, num_left_out: int) -> Terms:
  """The mean of `iwae` over all subsets that leave out `num_left_out` of the K samples.

  One left out takes O(K) memory; every further one, a factor of K.
  """
  if num_left_out == 0:
    return iwae(log_weights)
  if num_left_out == 1:
    return _leave_one_out_average(log_weights)
  # Leave out each sample in turn, then fewer of the others: axis 0 the others, axis 1 who is out.
  num_samples = log_weights.shape[0]
  sample, out = tf.meshgrid(tf.range(num_samples), tf.range(num_samples), indexing="ij")
  others = tf.gather(log_weights, sample[:-1] + tf.cast(sample[:-1] >= out[:-1], tf.int32))
  value, *weights = _subset_average(others, num_left_out - 1)

  def put_back(part):
    """[K-1 others, K, ...] -> [K, ...], the mean over who is out; who is out weighs 0."""
    place = tf.stack(
      [tf.minimum(sample - tf.cast(sample > out, tf.int32), num_samples - 2), out], -1
    )
    part = tf.gather_nd(part, place)
    is_out = tf.reshape(sample == out, [num_samples, num_samples] + [1] * (part.shape.rank - 2))
    return tf.reduce_mean(tf.where(is_out, tf.zeros_like(part), part), axis=1)

  return Terms(tf.reduce_mean(value, axis=0), *map(put_back, weights))


def _leave_one_out_average(log_weights: tf.Tensor) -> Terms:
  """The mean over i of `iwae` without sample i, in O(K).

  With S_-j the sum of weights without w_j, sample i weighs w_i / S_-j in the subset without j:
  u_i = (1/K) w_i sum_{j != i} 1/S_-j, and v_i has squares. In logs, where nothing cancels.
  """
  num_samples = tf.cast(tf.shape(log_weights)[0], log_weights.dtype)
  log_sums = iw.leave_one_out_log_sum(log_weights)
  value = tf.reduce_mean(log_sums, axis=0) - tf.math.log(num_samples - 1)

  def weights(power):
    """(1/K) sum_{j != i} (w_i / S_-j)^power; a subset of weights that are all 0 adds nothing."""
    inverse = tf.where(log_sums == -math.inf, log_sums, -log_sums) * power
    scale = iw.leave_one_out_log_sum(inverse)
    log_weight = log_weights * power + scale
    return (
      tf.where(log_weights == -math.inf, tf.zeros_like(scale), tf.exp(log_weight)) / num_samples
    )

  first, second = weights(1.0), weights(2.0)
  return Terms(value, first, second, first - second)
