"""Chooses the samples to backpropagate through so that the gradient stays unbiased.

Once the coefficients are numbers, every surrogate is linear in its samples: S = sum_i a_i s_i, with
s_i a function of the parameters. Choose a random subset that contains sample i with probability
pi_i, positive wherever a_i is not 0. Then

  S^ = sum_{i chosen} (a_i / pi_i) s_i

has the expected gradient sum_i pi_i (a_i / pi_i) grad s_i = grad S over the choice (Horvitz and
Thompson 1952), whatever the signs of the coefficients. So it is exact in expectation for every
bound, given the K samples. The choice adds variance, sum_i a_i^2 (1 / pi_i - 1) |grad s_i|^2 and
cross terms. Samples with pi_i = 1 add none, and for a given number M of samples the sum is small if
pi_i is proportional to what sample i carries. Hence

  pi_i = min(1, tau r_i),  tau such that sum_i pi_i = M,  r_i = max(|a_i|, |b_i|, |c_i|),

the largest of the sample's coefficients: r = wbar if weights are normalized, and the size of the
coefficients for JVI, where they have both signs. Systematic sampling draws exactly M samples with
these probabilities: lay intervals of lengths pi_1, ..., pi_K end to end and take those that the
numbers u, u + 1, ..., u + M - 1 fall into, with one uniform u.
"""

import tensorflow as tf

from dregs_tf import seeds


def select(coefficients: tuple[tf.Tensor, ...], num_chosen: int, seed: tf.Tensor):
  """Chooses the samples to record, and divides their coefficients by their probabilities.

  Args:
    coefficients: a tuple of Tensors [num_samples, ...], the numbers of a surrogate.
    num_chosen: M.
    seed: a stateless seed, of shape [2].

  Returns:
    The chosen samples' positions, int32 [num_chosen, ...], and the tuple of their coefficients,
    each [num_chosen, ...]. If fewer than M samples matter, the others have coefficients of 0.
  """
  sizes = tf.reduce_max(tf.abs(tf.stack(coefficients)), axis=0)
  probabilities = inclusion_probabilities(sizes, num_chosen)
  offset = uniform(tf.shape(sizes)[1:], seed, sizes.dtype)
  chosen, is_real = systematic(probabilities, num_chosen, offset)
  taken = take(probabilities, chosen)
  scale = tf.where(is_real, tf.math.reciprocal_no_nan(taken), tf.zeros_like(taken))
  return chosen, tuple(take(c, chosen) * scale for c in coefficients)


def added_variance(
  coefficients: tuple[tf.Tensor, ...], num_chosen: int
) -> tuple[tf.Tensor, tf.Tensor]:
  """Computes the variance that the choice adds, and a reference, for each coefficient.

  If the gradients grad s_i are uncorrelated and of equal size, the choice adds
  sum_i a_i^2 (1 / pi_i - 1), in units of that size, and sum_i a_i^2 is the mean square of the
  gradient itself. If gradients have a common part, the latter is larger; so is the variance of a
  batch's gradient, since examples differ.

  Args:
    coefficients: as `select` takes them.
    num_chosen: M.

  Returns:
    Both sums, each of shape [len(coefficients), ...], without the axis of the samples.
  """
  stacked = tf.stack(coefficients)
  probabilities = inclusion_probabilities(tf.reduce_max(tf.abs(stacked), axis=0), num_chosen)
  missed = tf.math.divide_no_nan(1 - probabilities, probabilities)
  return tf.reduce_sum(stacked**2 * missed, axis=1), tf.reduce_sum(stacked**2, axis=1)


def uniform(shape: tf.Tensor, seed: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
  """Draws uniform numbers in [0, 1), one for each example."""

  def sampler(shape):
    return tf.random.stateless_uniform(shape, seed, dtype=dtype, alg="philox")

  return seeds.draw(sampler, shape, axis=0)


def inclusion_probabilities(sizes: tf.Tensor, num_chosen: int) -> tf.Tensor:
  """Returns pi_i = min(1, tau r_i) with sum num_chosen; 1 where r_i > 0, if too few r_i are.

  Args:
    sizes: r_i >= 0 of shape [num_samples, ...].
    num_chosen: M.
  """
  # At most M are certain, so those beyond the M largest need not be sorted. No sum is computed as a
  # difference of others, since small sums would lose their digits.
  largest = _largest(sizes, num_chosen)
  least = largest[-1]
  ties = tf.cast(tf.math.count_nonzero(sizes >= least, axis=0) - num_chosen, sizes.dtype)
  others = tf.reduce_sum(tf.where(sizes < least, sizes, tf.zeros_like(sizes)), axis=0)
  # rest[h]: the sum of all but the h largest.
  rest = tf.cumsum(largest, axis=0, reverse=True) + (others + ties * least)
  # If h samples are certain, tau = (M - h) / rest[h]. The right h is the smallest one for which no
  # other sample exceeds 1; larger ones have a smaller tau.
  left = tf.range(num_chosen, 0, -1, dtype=sizes.dtype)
  left = tf.reshape(left, [-1] + [1] * (sizes.shape.rank - 1))
  fits = tf.logical_and(largest * left <= rest, rest > 0)
  tau = tf.reduce_max(tf.where(fits, left / rest, tf.zeros_like(rest)), axis=0)
  too_few = tf.logical_not(tf.reduce_any(fits, axis=0))
  return tf.where(
    tf.logical_and(too_few, sizes > 0), tf.ones_like(sizes), tf.minimum(tau * sizes, 1)
  )


def _largest(sizes: tf.Tensor, number: int) -> tf.Tensor:
  """Returns the largest along axis 0, descending: [num_samples, ...] -> [number, ...]."""
  axes = list(range(sizes.shape.rank))
  last, first = axes[1:] + axes[:1], axes[-1:] + axes[:-1]
  return tf.transpose(tf.math.top_k(tf.transpose(sizes, last), number).values, first)


def systematic(probabilities: tf.Tensor, num_chosen: int, offset: tf.Tensor):
  """Returns the samples on whose intervals, of lengths pi_i, offset, offset + 1, ... fall.

  Args:
    probabilities: pi_i of shape [num_samples, ...], each at most 1.
    num_chosen: M.
    offset: uniform in [0, 1), of shape [...].

  Returns:
    Positions, int32 [num_chosen, ...], and whether each is valid: beyond the sum of the
    probabilities there is no sample.
  """
  ends = tf.cumsum(probabilities, axis=0)
  steps = tf.reshape(
    tf.range(num_chosen, dtype=ends.dtype), [num_chosen] + [1] * (ends.shape.rank - 1)
  )
  points = offset + steps
  passed = tf.cast(ends[tf.newaxis] <= points[:, tf.newaxis], tf.int32)
  position = tf.reduce_sum(passed, axis=1)
  last = tf.shape(probabilities)[0] - 1
  return tf.minimum(position, last), position <= last


def take(tensor: tf.Tensor, positions: tf.Tensor) -> tf.Tensor:
  """Gathers along axis 0: [num_samples, *batch, ...] -> [num_chosen, *batch, ...]."""
  size = tf.shape(positions)
  batch = tf.meshgrid(*[tf.range(size[i]) for i in range(positions.shape.rank)], indexing="ij")[1:]
  return tf.gather_nd(tensor, tf.stack([positions, *batch], axis=-1))
