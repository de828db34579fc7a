"""Weighs the log-weights of a particle filter, so that autodiff gives an estimator's gradient.

With u the normalized weights of the block that a step is in, the surrogate of a step's log-weights
is, in the notation of `dregs_tf/bounds.py`,

  a log p~ + b log w^ + c log q~,   total: a = b = u;   dreg: a = u, b = u^2;   c = 0.

The choice of ancestors adds the score (R - B) dlog P(ancestors). Multinomial ancestors, n_k of them
particle k, have dlog P = sum_k (n_k - K u_k) dlog W_k, the total derivative, so it adds
(R - B) (n_k - K u_k) to a and b, and subtracts it from c.
"""

import tensorflow as tf

from dregs_tf import importance_weights, surrogate
from dregs_tf.sequential import gates, steps
from dregs_tf.sequential.filtering import Outputs


def total(
  outputs: Outputs, value: tf.Tensor, lengths: int | tf.Tensor, needs: steps.Needs
) -> tf.Tensor:
  """Returns the surrogate, [batch_size], of which only the gradient is meaningful.

  Args:
    outputs: the outputs of the particle filter.
    value: the bound, [batch_size], in nats.
    lengths: the number of steps, a number or [batch_size].
    needs: what the estimator needs from the steps.
  """
  by_step = tf.transpose(outputs.log_weights, [1, 0, 2])  # over axis 0, the particles
  u = tf.transpose(importance_weights.normalize(by_step), [1, 0, 2])
  signal = _resampling_signal(outputs, u, value, lengths) if needs.score else None
  end = _block_ends(outputs.begins)
  u, signal = (_gather(x, end, value) for x in (u, signal))
  a, b = u, u**2 if needs.gates else u
  if signal is not None:
    a, b = a + signal, b + signal
  no_nan = tf.math.multiply_no_nan  # 0 * -inf is 0 here: a particle of weight 0 adds nothing.
  result = 0.0
  if needs.gates:
    a, ratio = surrogate.finite_ratios(a, b)
    result = gates.set_ratios(outputs.ticket, tf.cast(ratio, outputs.ticket.dtype))
    result = tf.cast(result, a.dtype)
  result += tf.reduce_sum(no_nan(outputs.increments, a), axis=[0, 1])
  if needs.gates and signal is not None:
    result -= tf.reduce_sum(no_nan(tf.cast(outputs.score, signal.dtype), signal), axis=[0, 1])
  return result


def _block_ends(begins: tf.Tensor) -> tf.Tensor:
  """Returns the last step of the block that each step is in, [T, batch_size]."""
  numbers = tf.transpose(tf.cumsum(tf.cast(begins, tf.int32), axis=0))
  return tf.transpose(tf.searchsorted(numbers, numbers, side="right")) - 1


def _gather(values: tf.Tensor | None, end: tf.Tensor, value: tf.Tensor) -> tf.Tensor | None:
  """Returns values [T, num_particles, batch_size] at the ends of blocks; 0 for a bound of -inf."""
  if values is None:
    return None
  by_example = tf.transpose(values, [2, 0, 1])
  found = tf.gather(by_example, tf.transpose(end), axis=1, batch_dims=1)
  found = tf.transpose(found, [1, 2, 0])
  # If all particles have weight 0, the gradient is 0. NaN stays, so that it is noticed.
  return tf.where(value == -float("inf"), tf.zeros_like(found), found)


def _resampling_signal(outputs, u, value, lengths) -> tf.Tensor:
  """Returns (R - B) (n_k - K u_k) at the steps before a resampling, 0 at others: [T, K, B]."""
  num_steps, num_particles, batch_size = tf.unstack(tf.shape(u))
  row = tf.range(num_steps)[:, tf.newaxis, tf.newaxis] * num_particles + outputs.ancestors
  counts = tf.math.unsorted_segment_sum(
    tf.ones_like(u), row * batch_size + tf.range(batch_size), tf.size(u)
  )
  counts = tf.reshape(counts, tf.shape(u))
  closed = outputs.closed
  so_far = tf.cast(tf.range(num_steps)[:, tf.newaxis], closed.dtype)
  left = tf.cast(lengths, closed.dtype) - so_far
  baseline = tf.math.divide_no_nan(closed, so_far) * left
  advantage = tf.where(outputs.begins, value - closed - baseline, tf.zeros_like(closed))
  # A resampling before step t + 1 ends the block of step t.
  advantage, counts = (
    tf.concat([x[1:], tf.zeros_like(x[:1])], axis=0) for x in (advantage, counts)
  )
  signal = advantage[:, tf.newaxis] * (counts - tf.cast(num_particles, u.dtype) * u)
  return tf.where((advantage == 0)[:, tf.newaxis], tf.zeros_like(signal), signal)
