"""Computes Monte Carlo objectives and their derivatives, as pure functions of log-weights.

Each function takes log-weights l of independent samples, of shape [num_samples, batch_size] in
nats, and returns the `Terms` from which every estimator of its gradient is built. Nothing here uses
autodiff, and nothing cancels if one weight holds all the mass.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import tensorflow as tf

from dregs_tf import importance_weights as iw


class Terms(NamedTuple):
  """Holds a value F(l_1, ..., l_K) and the derivatives from which its gradient is built.

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
  uniform = tf.ones_like(log_weights) / iw.count(log_weights)
  return Terms(tf.reduce_mean(log_weights, axis=0), uniform, uniform, tf.zeros_like(uniform))


def iwae(log_weights: tf.Tensor) -> Terms:
  """Computes the K-sample bound L_K = log (1/K) sum_i w_i, with wbar and wbar^2 (Eqs. 3 and 7)."""
  weights, difference = _softmax(log_weights)
  return Terms(iw.log_mean(log_weights), weights, weights**2, difference)


def _softmax(log_weights: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
  """Returns wbar, and wbar (1 - wbar) without cancellation."""
  weights, others = iw.normalize_with_rest(log_weights)
  return weights, tf.math.multiply_no_nan(others, weights)


def _largest(log_weights: tf.Tensor) -> tf.Tensor:
  """Returns the largest along axis 0, to subtract for precision, or 0 where it is not finite."""
  largest = tf.reduce_max(log_weights, axis=0)
  return tf.where(tf.math.is_finite(largest), largest, tf.zeros_like(largest))


def vr_iwae(log_weights: tf.Tensor, alpha: float | tf.Tensor) -> Terms:
  """Computes the VR-IWAE bound 1/(1-alpha) log (1/K) sum_i w_i^(1-alpha).

  It is L_K at alpha = 0 and the mean ELBO at 1 (Daudel et al. 2023,
  https://arxiv.org/abs/2210.06226).

  Args:
    log_weights: [num_samples, batch_size].
    alpha: in [0, 1], a number or a scalar Tensor.
  """
  s = 1 - iw.as_scalar(alpha, log_weights.dtype)
  # Here 0 * -inf is 0: at alpha = 1 all samples have the same weight.
  weights, difference = _softmax(tf.math.multiply_no_nan(log_weights, s))
  largest = _largest(log_weights)
  relative = log_weights - largest
  # log1p and expm1 keep precision where s is about 0 and the powers are about 1.
  powers = tf.reduce_mean(tf.math.expm1(tf.math.multiply_no_nan(relative, s)), axis=0)
  value = tf.where(s > 0, tf.math.log1p(powers) / s, tf.reduce_mean(relative, axis=0))
  return Terms(largest + value, weights, (1 - s) * weights + s * weights**2, s * difference)


def ciwae(log_weights: tf.Tensor, beta: float | tf.Tensor) -> Terms:
  """Computes beta times the mean ELBO plus 1 - beta times L_K (Rainforth et al. 2018).

  Args:
    log_weights: [num_samples, batch_size].
    beta: in [0, 1], a number or a scalar Tensor. https://arxiv.org/abs/1802.04537
  """
  beta = iw.as_scalar(beta, log_weights.dtype)
  return Terms(
    *(
      tf.math.multiply_no_nan(one, beta) + tf.math.multiply_no_nan(other, 1 - beta)
      for one, other in zip(elbo(log_weights), iwae(log_weights), strict=True)
    )
  )


def miwae(log_weights: tf.Tensor, groups: int) -> Terms:
  """Computes the mean of `groups` bounds L, each of K / groups samples (Rainforth et al. 2018).

  Args:
    log_weights: [num_samples, batch_size]; consecutive samples form a group.
    groups: M, which divides num_samples. https://arxiv.org/abs/1802.04537
  """
  value, *weights = _iwae_of_groups(log_weights, groups)
  return Terms(
    tf.reduce_mean(value, axis=0),
    *(tf.reshape(part / groups, tf.shape(log_weights)) for part in weights),
  )


def _iwae_of_groups(log_weights: tf.Tensor, groups: int) -> Terms:
  """Computes `iwae` of each group: values [groups, ...], weights [groups, samples of each, ...]."""
  shape = tf.shape(log_weights)
  grouped = tf.reshape(log_weights, tf.concat([[groups, shape[0] // groups], shape[1:]], axis=0))
  value, *weights = iwae(tf.stack(tf.unstack(grouped, num=groups, axis=0), axis=1))
  return Terms(value, *(tf.stack(tf.unstack(part, num=groups, axis=1)) for part in weights))


def miselbo(log_weights: tf.Tensor, probs: tf.Tensor | None = None) -> Terms:
  """Computes sum_m pi_m log (1/K) sum_k w_mk, the looser bound of a mixture (Kviman et al. 2022).

  Args:
    log_weights: log (M pi_m w_mk), [M K, batch_size], grouped by component.
      https://arxiv.org/abs/2202.10951
    probs: pi, [M, 1 or batch_size]; the value is differentiable in them. None for one component,
      where this is `iwae`.
  """
  if probs is None:
    return iwae(log_weights)
  groups = probs.shape[0]
  value, *weights = _iwae_of_groups(log_weights, groups)
  is_positive = probs > 0
  shares = groups * tf.where(is_positive, probs, tf.ones_like(probs))
  value = tf.where(is_positive, value - tf.math.log(shares), tf.zeros_like(value))
  fixed = tf.stop_gradient(probs)[:, tf.newaxis]
  return Terms(
    tf.reduce_sum(tf.math.multiply_no_nan(value, probs), axis=0),
    *(tf.reshape(part * fixed, tf.shape(log_weights)) for part in weights),
  )


def tvo(log_weights: tf.Tensor, betas: Sequence[float]) -> Terms:
  """Computes the thermodynamic variational objective (Masrani et al. 2019), a left Riemann sum.

    sum_k (beta_{k+1} - beta_k) sum_i W_ki l_i,   W_k = softmax(beta_k l)

  The derivatives are those of this estimate with K samples, not of its limit.

  Args:
    log_weights: [num_samples, batch_size].
    betas: beta_0 = 0 < ... < beta_n = 1. https://arxiv.org/abs/1907.00031
  """
  no_nan = tf.math.multiply_no_nan
  total = [0.0] * len(Terms._fields)
  for beta, following in itertools.pairwise(betas):
    beta, step = (tf.constant(x, log_weights.dtype) for x in (beta, following - beta))
    weights = iw.normalize(no_nan(log_weights, beta))
    mean = tf.reduce_sum(no_nan(log_weights, weights), axis=0)
    slope = 1 + no_nan(log_weights - mean, beta)  # of l_i in the mean, over W_i
    u = no_nan(slope, weights)
    difference = no_nan(beta * (1 + slope - 2 * u), weights)
    v = u - difference
    total = [t + step * part for t, part in zip(total, (mean, u, v, difference), strict=True)]
  return Terms(*total)


def jvi(log_weights: tf.Tensor, order: int) -> Terms:
  """Computes the jackknife of order m (Sec. 4.2; Nowozin 2018), a combination of bounds.

    JVI_m = sum_{j=0..m} C(K, m, j) * mean over subsets S of size K-j of L(S),
    C(K, m, j) = (-1)^j (K-j)^m / ((m-j)! j!)

  The coefficients grow like K^m and cancel, so this is computed in float64.

  Args:
    log_weights: [num_samples, batch_size], with a static num_samples.
    order: m, less than num_samples.

  Raises:
    ValueError: if num_samples is not static.
  """
  num_samples = log_weights.shape[0]
  if num_samples is None:
    raise ValueError("axis 0 of log_weights, the samples, must be of a known size for JVI.")
  exact = tf.cast(log_weights, tf.float64)
  largest = _largest(exact)
  total = [0.0] * len(Terms._fields)
  for j in range(order + 1):
    scale = (-1) ** j * (num_samples - j) ** order / (math.factorial(order - j) * math.factorial(j))
    parts = _subset_average(exact - largest, j)
    total = [t + scale * part for t, part in zip(total, parts, strict=True)]
  value, *weights = total
  # If all weights are 0, the sum would contain infinities of both signs.
  no_weight = tf.reduce_all(exact == -math.inf, axis=0)
  value = tf.where(no_weight, tf.constant(-math.inf, tf.float64), value + largest)
  return Terms(*(tf.cast(part, log_weights.dtype) for part in (value, *weights)))


def added_by_each(objective: Callable[[tf.Tensor], Terms], log_weights: tf.Tensor) -> tf.Tensor:
  """Computes what each sample adds to a value F: F - B_i, [num_samples, batch_size].

  B_i is a function of the other samples: F with w_i = 0 or, where that is not finite, with the mean
  of the others as w_i; 0 where they have no weight. So the result times the score of sample i
  estimates the gradient of E[F] in a distribution that has no path (Mnih and Rezende 2016).
  """
  value = objective(log_weights).value
  num_samples = iw.count(log_weights, tf.int32)
  means = iw.leave_one_out_log_sum(log_weights) - tf.math.log(iw.count(log_weights) - 1)

  def without(sample):
    is_out = tf.reshape(tf.range(num_samples) == sample, [-1] + [1] * (log_weights.shape.rank - 1))
    candidates = (
      objective(tf.where(is_out, replaced, log_weights)).value
      for replaced in (tf.constant(-math.inf, log_weights.dtype), means[sample])
    )
    baseline = tf.zeros_like(value)
    for candidate in reversed(list(candidates)):
      baseline = tf.where(tf.math.is_finite(candidate), candidate, baseline)
    return value - baseline

  added = tf.map_fn(without, tf.range(num_samples), fn_output_signature=log_weights.dtype)
  added = tf.ensure_shape(added, log_weights.shape)
  return tf.where(value == -math.inf, tf.zeros_like(added), added)


def _subset_average(log_weights: tf.Tensor, num_left_out: int) -> Terms:
  """Returns the mean of `iwae` over all subsets that leave out `num_left_out` of the K samples.

  Leaving out one sample takes O(K) memory; every further one multiplies this by K.
  """
  if num_left_out == 0:
    return iwae(log_weights)
  if num_left_out == 1:
    return _leave_one_out_average(log_weights)
  # Leave out each sample in turn (axis 1), then further ones of the others (axis 0).
  num_samples = log_weights.shape[0]
  sample, out = tf.meshgrid(tf.range(num_samples), tf.range(num_samples), indexing="ij")
  others = tf.gather(log_weights, sample[:-1] + tf.cast(sample[:-1] >= out[:-1], tf.int32))
  value, *weights = _subset_average(others, num_left_out - 1)

  def put_back(part):
    """Averages over the left-out sample, which gets weight 0: [K-1 others, K, ...] -> [K, ...]."""
    place = tf.stack(
      [tf.minimum(sample - tf.cast(sample > out, tf.int32), num_samples - 2), out], -1
    )
    part = tf.gather_nd(part, place)
    is_out = tf.reshape(sample == out, [num_samples, num_samples] + [1] * (part.shape.rank - 2))
    return tf.reduce_mean(tf.where(is_out, tf.zeros_like(part), part), axis=1)

  return Terms(tf.reduce_mean(value, axis=0), *map(put_back, weights))


def _leave_one_out_average(log_weights: tf.Tensor) -> Terms:
  """Returns the mean over i of `iwae` without sample i, in O(K).

  With S_-j the sum of weights without w_j, sample i weighs w_i / S_-j in the subset without j:
  u_i = (1/K) w_i sum_{j != i} 1/S_-j, and v_i has squares. Computed in logs, where nothing cancels.
  """
  num_samples = iw.count(log_weights)
  log_sums = iw.leave_one_out_log_sum(log_weights)
  value = tf.reduce_mean(log_sums, axis=0) - tf.math.log(num_samples - 1)

  def weights(power):
    """Returns (1/K) sum_{j != i} (w_i / S_-j)^power; a subset of zero weights adds nothing."""
    inverse = tf.where(log_sums == -math.inf, log_sums, -log_sums) * power
    scale = iw.leave_one_out_log_sum(inverse)
    log_weight = log_weights * power + scale
    return (
      tf.where(log_weights == -math.inf, tf.zeros_like(scale), tf.exp(log_weight)) / num_samples
    )

  first, second = weights(1.0), weights(2.0)
  return Terms(value, first, second, first - second)
